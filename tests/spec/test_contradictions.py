# ruff: noqa: E501  (one row a rule: wrapped, the tables could not be compared by eye)
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_tune.errors import Problem

Problems = Callable[..., list[Problem]]

TEXT = {"task": "text-classification", "data": {"source": "hub:imdb"}, "model": {"name": "transformers:a/b", "weights": "DEFAULT"}}  # fmt: skip
NO_TEXT = "has no meaning for text-classification; remove it"
NO_IMAGE = "has no meaning for image-classification; remove it"
PRUNABLE = (
    "nothing can be pruned: objective.rungs is {}, and no rung before the end has the progress "
    "of {} %; raise rungs, or set `name: none`"
)


def text(**sections: Any) -> dict[str, Any]:
    """Return the changes that make the base study one of text, with ``sections`` merged in."""
    merged: dict[str, Any] = {**TEXT}
    for key, value in sections.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


TABLE: list[tuple[dict[str, Any], str, str, str | None]] = [
    # what changes, place, rule with remedy, value shown
    ({"data": {"fold": 1}}, "data.fold", "is one of data.folds, which is not given; give it", "1"),
    ({"data": {"folds": 3, "fold": 3}}, "data.fold", "must be below data.folds, 3; they count from 0", "3"),
    ({"data": {"folds": 3, "validation_fraction": 0.1}}, "data.validation_fraction", "unused: data.folds takes validation from train; remove it", "0.1"),
    ({"pruner": {"name": "wilcoxon"}}, "pruner.name", "wilcoxon compares trials fold by fold; give data.folds, or choose another", "'wilcoxon'"),
    ({"sampler": {"name": "random", "cost_aware": True}}, "sampler.cost_aware", "is read only by tpe, not random; remove it, or set `name: tpe`", "true"),
    ({"sampler": {"cost_aware": True}}, "sampler.cost_aware", "counts cost in epochs and models, and the space holds neither a `model.name` nor numbers of epochs above 0; remove it, or search one of these", "true"),
    ({"data": {"folds": 5, "fold": 0}, "pruner": {"name": "wilcoxon"}}, "pruner.name", "wilcoxon compares trials fold by fold; give data.folds, or choose another", "'wilcoxon'"),
    ({"data": {"folds": 2}, "pruner": {"name": "asha", "first": 60}}, "pruner.first", "nothing can be pruned: data.folds is 2, and no rung before the end has the progress of 60 %; raise folds, or set `name: none`", "60"),
    ({"pruner": {"name": "asha", "p_threshold": 0.2}}, "pruner.p_threshold", "is read only by wilcoxon, not asha; remove it, or set `name: wilcoxon`", "0.2"),
    (text(data={"source": "torchvision:CIFAR10"}), "data.source", "holds images, but the task is text-classification; change one of them", "'torchvision:CIFAR10'"),
    (text(data={"source": "sklearn:digits"}), "data.source", "holds images, but the task is text-classification; change one of them", "'sklearn:digits'"),
    (text(data={"image_size": 32}), "data.image_size", NO_TEXT, "32"),
    (text(training={"batch_tokens": 200}), "training.batch_tokens", "a text may have 256 tokens (data.max_length), more than a batch of 200; raise this, or lower that", "200"),
    (text(space={"batch_tokens": {"low": 128, "high": 512}}), "space.batch_tokens", "a text may have 256 tokens (data.max_length), more than a batch of 128; raise this, or lower that", "{low: 128, high: 512}"),
    (text(training={"batch_tokens": 512, "batch_size": 16}), "training.batch_size", "has an effect only without batch_tokens; remove one of them", "16"),
    (text(training={"batch_tokens": 512}, space={"batch_size": [16, 32]}), "space.batch_size", "has an effect only without batch_tokens; remove one of them", "[16, 32]"),
    ({"training": {"batch_tokens": 512}}, "training.batch_tokens", NO_IMAGE, "512"),
    (text(data={"image_column": "x"}), "data.image_column", NO_TEXT, "'x'"),
    ({"data": {"max_length": 64}}, "data.max_length", NO_IMAGE, "64"),
    ({"data": {"text_column": "x"}}, "data.text_column", NO_IMAGE, "'x'"),
    (text(training={"augment": "flip"}), "training.augment", NO_TEXT, "'flip'"),
    (text(space={"augment": ["none", "flip"]}), "space.augment", NO_TEXT, "['none', 'flip']"),
    (text(model={"name": "torchvision:resnet18"}), "model.name", "torchvision:resnet18 reads images, but the task is text-classification; use transformers:ID-or-path", "'torchvision:resnet18'"),
    (text(space={"model.name": ["transformers:a/b", "builtin:convnet"]}, model={"weights": "none"}), "space.model.name", "builtin:convnet reads images, but the task is text-classification; use transformers:ID-or-path", "['transformers:a/b', 'builtin:convnet']"),
    ({"model": {"weights": "DEFAULT"}}, "model.weights", "builtin:convnet has no published weights DEFAULT; give a file, or none", "'DEFAULT'"),
    (text(model={"weights": "V1"}), "model.weights", "transformers:a/b has the weights DEFAULT or none, or those of a file", "'V1'"),
    (text(space={"model.weights": ["none", "DEFAULT", "V1"]}), "space.model.weights", "transformers:a/b has the weights DEFAULT or none, or those of a file", "['none', 'DEFAULT', 'V1']"),
    ({"training": {"freeze": "backbone"}}, "training.freeze", "freeze: backbone with model.weights: none keeps random weights for ever; change one, or keep them apart with `when`", "'backbone'"),
    ({"space": {"freeze": ["none", "backbone"]}}, "space.freeze", "freeze: backbone with model.weights: none keeps random weights for ever; change one, or keep them apart with `when`", "['none', 'backbone']"),
    (text(training={"freeze": "backbone"}, space={"head_multiplier": [1, 10]}), "space.head_multiplier", "with freeze: backbone only the head is trained, so learning_rate sets its rate alone; search that", "[1, 10]"),
    ({"space": {"momentum": [0.9, 0.8]}}, "space.momentum", "has an effect only with optimizer: sgd or muon; add that or remove it", "[0.9, 0.8]"),
    ({"space": {"decay_factor": [0.9, 0.8], "schedule": ["linear", "cosine"]}}, "space.decay_factor", "has an effect only with schedule: exponential or step; add that or remove it", "[0.9, 0.8]"),
    ({"space": {"min_learning_rate": [0, 1e-5]}, "training": {"schedule": "constant"}}, "space.min_learning_rate", "has an effect only with schedule: linear or cosine or polynomial or warmup_stable_decay or one_cycle; add that or remove it", "[0, 1e-05]"),
    ({"space": {"momentum": {"values": [0.9], "when": {"optimizer": "adam"}}, "optimizer": ["adamw", "adam", "sgd"]}}, "space.momentum", "has an effect only with optimizer: sgd or muon; add that or remove it", "{values: [0.9], when: {optimizer: 'adam'}}"),
    ({"training": {"optimizer": "adam", "momentum": 0.5}}, "training.momentum", "has an effect only with optimizer: sgd or muon; add that or remove it", "0.5"),
    ({"training": {"decay_factor": 0.5}, "space": {"schedule": ["constant", "linear"]}}, "training.decay_factor", "has an effect only with schedule: exponential or step; add that or remove it", "0.5"),
    ({"training": {"min_learning_rate": 1e-3, "schedule": "constant"}}, "training.min_learning_rate", "has an effect only with schedule: linear or cosine or polynomial or warmup_stable_decay or one_cycle; add that or remove it", "0.001"),
    ({"training": {"min_change": 0.1}}, "training.min_change", "has an effect only with patience; give that a number or remove this", "0.1"),
    (text(model={"lora_alpha": 3}), "model.lora_alpha", "has an effect only with model.lora_rank; give that, or remove it", "3"),
    ({"training": {"min_learning_rate": 1e-3}}, "training.min_learning_rate", "must not exceed learning_rate, which may be 0.0001; lower it", "0.001"),
    ({"space": {"min_learning_rate": {"low": 1e-6, "high": 1e-3}}}, "space.min_learning_rate", "must not exceed learning_rate, which may be 0.0001; lower it", "{low: 1e-06, high: 0.001}"),
    ({"training": {"freeze": "blocks"}}, "training.freeze", "freeze: blocks with model.weights: none keeps random weights for ever; change one, or keep them apart with `when`", "'blocks'"),
    (text(space={"freeze_blocks": [1, 2], "freeze": ["none", "backbone"]}), "space.freeze_blocks", "has an effect only with freeze: blocks; add that or remove it", "[1, 2]"),
    (text(space={"unfreeze_at": [0.1, 0.2]}), "space.unfreeze_at", "has an effect only with freeze: head_first or gradual; add that or remove it", "[0.1, 0.2]"),
    ({"space": {"ema_decay": [0.9, 0.99], "averaging": ["none", "swa"]}}, "space.ema_decay", "has an effect only with averaging: ema; add that or remove it", "[0.9, 0.99]"),
    ({"space": {"min_change": [0, 0.1]}}, "space.min_change", "has an effect only with patience; give that a number or remove this", "[0, 0.1]"),
    (text(training={"mix": "mixup"}), "training.mix", NO_TEXT, "'mixup'"),
    ({"space": {"mix_alpha": [0.1, 0.4]}}, "space.mix_alpha", "has an effect only with mix: mixup or cutmix; add that or remove it", "[0.1, 0.4]"),
    (text(space={"erasing": {"low": 0.1, "high": 0.5}}), "space.erasing", NO_TEXT, "{low: 0.1, high: 0.5}"),
    (text(training={"auto_augment": "randaugment"}), "training.auto_augment", NO_TEXT, "'randaugment'"),
    ({"training": {"token_masking": 0.1}}, "training.token_masking", NO_IMAGE, "0.1"),
    ({"space": {"magnitude": [5, 9], "auto_augment": ["none", "trivialaugment"]}}, "space.magnitude", "has an effect only with auto_augment: randaugment; add that or remove it", "[5, 9]"),
    ({"model": {"reinit_blocks": 1}}, "model.reinit_blocks", "with model.weights: none all blocks begin with random weights; remove it", "1"),
    ({"model": {"lora_rank": 4}}, "model.lora_rank", "LoRA is for pretrained models of a library, not builtin:convnet; remove it", "4"),
    (text(model={"lora_rank": 4}, training={"freeze": "backbone"}), "model.lora_rank", "with freeze: backbone no update is trained; change one", "4"),
    (text(space={"model.lora_dropout": [0.0, 0.1]}), "space.model.lora_dropout", "has an effect only with model.lora_rank; give that, or remove it", "[0, 0.1]"),
    ({"space": {"epsilon": [1e-8, 1e-6], "optimizer": ["sgd", "lion"]}}, "space.epsilon", "has an effect only with optimizer: adamw or adam or muon; add that or remove it", "[1e-08, 1e-06]"),
    ({"space": {"cycles": [1, 2]}}, "space.cycles", "has an effect only with schedule: cosine; add that or remove it", "[1, 2]"),
    ({"training": {"optimizer": "sgd", "momentum": 0.0, "nesterov": True}}, "training.nesterov", "needs momentum above 0; raise that or remove it", "true"),
    ({"training": {"schedule": "warmup_stable_decay", "warmup": 0.5, "cooldown": 0.6}}, "training.cooldown", "with warmup, which may be 0.5, it takes more than the whole trial; lower one", "0.6"),
    ({"resources": {"devices": [0, 1, 0]}}, "resources.devices", "names a GPU twice; remove one, or set trials_per_device for more trials on each", "[0, 1, 0]"),
    ({"data": {"validation": "v", "validation_fraction": 0.3}}, "data.validation_fraction", "data.validation is given, so this is unused; remove it", "0.3"),
    ({"data": {"test": "t", "test_fraction": 0.3}}, "data.test_fraction", "data.test is given, so this is unused; remove it", "0.3"),
    ({"data": {"test_fraction": 0.8}}, "data.test_fraction", "with validation_fraction 0.2 nothing remains to train on; their sum must be below 1", "0.8"),
    ({"data": {"validation": "a", "test": "a"}}, "data.test", "is the same as data.validation; scores on seen data mean nothing", "'a'"),
    ({"data": {"normalize": {"mean": [0.5], "std": [0.5, 0.5, 0.5]}}}, "data.normalize", "mean and std need 1 or 3 values each (a value per channel), not 1 and 3", "{mean: [0.5], std: [0.5, 0.5, 0.5]}"),
    ({"data": {"normalize": {"mean": [0.5, 1], "std": [0.5, 1]}}}, "data.normalize", "mean and std need 1 or 3 values each (a value per channel), not 2 and 2", "{mean: [0.5, 1], std: [0.5, 1]}"),
    ({"data": {"normalize": {"mean": [], "std": []}}}, "data.normalize", "mean and std need 1 or 3 values each (a value per channel), not 0 and 0", "{mean: [], std: []}"),
    ({"data": {"classes": ["a", "a"]}}, "data.classes", "names a label twice; remove one", "['a', 'a']"),
    ({"data": {"classes": [1]}}, "data.classes", "a classification needs two labels or more; add some", "[1]"),
    ({"data": {"subset": "x"}}, "data.subset", "only hub: sources have subsets; remove it", "'x'"),
    ({"objective": {"direction": "minimize"}}, "objective.direction", "accuracy is better when higher; remove the line", "'minimize'"),
    ({"objective": {"metric": "loss", "direction": "maximize"}}, "objective.direction", "loss is better when lower; remove the line", "'maximize'"),
    ({"budget": {"target": 95}}, "budget.target", "accuracy lies between 0 and 1; write 0.95", "95"),
    ({"budget": {"target": -0.5}}, "budget.target", "accuracy lies between 0 and 1", "-0.5"),
    ({"objective": {"metric": "f1"}}, "objective.metric", "must be one of auto, accuracy, balanced_accuracy, f1_macro, f1_micro, f1_weighted, precision_macro, recall_macro, matthews, loss; did you mean f1_macro?", "'f1'"),
    ({"budget": {"target": -1}, "objective": {"metric": "loss"}}, "budget.target", "loss is not below 0", "-1"),
    ({"budget": {"target": -2}, "objective": {"metric": "matthews"}}, "budget.target", "matthews lies between -1 and 1", "-2"),
    ({"pruner": {"percentile": 10}}, "pruner.percentile", "is read only by percentile, not asha; remove it, or set `name: percentile`", "10"),
    ({"pruner": {"name": "median", "reduction": 3}}, "pruner.reduction", "is read only by asha and hyperband, not median; remove it, or set `name: asha`", "3"),
    ({"pruner": {"first": 95}}, "pruner.first", PRUNABLE.format(10, 95), "95"),
    ({"pruner": {"name": "median"}, "objective": {"rungs": 1}}, "pruner.name", PRUNABLE.format(1, 20), "'median'"),
    ({"sampler": {"enqueue": [{}, {}]}, "budget": {"trials": 2}}, "budget.trials", "must hold the default configuration and the 2 of sampler.enqueue; write 3 or more", "2"),
]  # fmt: skip

FROZEN = {"freeze": "backbone"}
# Why trials of a study cannot train as one, where a number of them is to.
ALONE: list[tuple[dict[str, Any], str]] = [
    ({"space": {"learning_rate": [0.1, 0.2], "augment": ["none", "flip"]}}, "they must agree on augment, which is searched; remove one of them"),
    ({"space": {"optimizer": ["sgd", "lion"]}}, "there are stacks of sgd, adam, adamw alone, and lion is searched; remove one of them"),
    ({"training": {"optimizer": "muon"}}, "there are stacks of sgd, adam, adamw alone, not muon; change one of them"),
    ({"training": {"augment": "flip"}}, "they need augment: 'none'; change one of them"),
    ({"training": {"precision": "fp16"}}, "they need another precision than fp16; change one of them"),
    ({"training": {"freeze": "gradual"}}, "of gradual (freeze) the weights that train change; remove one of them"),
    ({"resources": {"compile": True}}, "a stack of models is not compiled (resources.compile); remove one of them"),
    ({"resources": {"loggers": ["tensorboard", "wandb"]}}, "wandb (resources.loggers) knows one run at a time; remove one of them"),
    ({"data": {"folds": 3}}, "folds (data.folds) train one by one; remove one of them"),
    (text(data={"multi_label": True}), "there are no stacks of multi_label; remove this"),
    (text(task="text-regression", objective={"metric": "mse"}), "there are no stacks of text-regression; remove this"),
    (text(training=FROZEN, resources={"feature_cache": False}), "heads need resources.feature_cache: true; change one of them"),
    (text(training=FROZEN, model={"reinit_blocks": 1}), "heads need a backbone that is the same for every seed; remove this"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "reason"), ALONE)
def test_a_number_of_trials_that_cannot_train_as_one_is_told_with_why(
    problems: Problems, changes: dict[str, Any], reason: str
) -> None:
    rule = f"trials of this study cannot train as one: {reason}"
    resources = changes.get("resources", {})
    asked = {**changes, "resources": {**resources, "stack": 8}}
    assert problems(**asked) == [Problem("resources.stack", rule, "8")]
    assert problems(**changes) == []  # they train one at a time, where nobody asked for more


def test_trials_of_any_batch_size_may_train_as_one(problems: Problems) -> None:
    space = {"batch_size": [8, 16, 64], "learning_rate": [0.1, 0.2], "model.dropout": [0.0, 0.5]}
    changes = text(training=FROZEN, space=space, resources={"stack": 8})
    assert problems(**changes) == []


@pytest.mark.parametrize(("changes", "place", "rule", "value"), TABLE)
def test_a_contradiction_is_told_with_place_value_and_remedy(
    problems: Problems, changes: dict[str, Any], place: str, rule: str, value: str | None
) -> None:
    assert problems(**changes) == [Problem(place, rule, value)]


@pytest.mark.parametrize(
    "changes",
    [
        text(),
        text(training={"augment": "none"}, data={"image_column": "image"}),
        text(space={"augment": ["none"]}),
        {"data": {"max_length": 256}},
        {"training": {"min_learning_rate": 1e-4}},
        {"training": {"momentum": 0.9, "decay_factor": 0.9}},  # their defaults
        {
            "training": {"momentum": 0.5, "decay_factor": 0.5, "min_change": 0.1},
            "space": {"optimizer": ["adam", "sgd"], "schedule": ["step"], "patience": [None, 2]},
        },
        {"space": {"momentum": [0.8, 0.9], "optimizer": ["adamw", "sgd"]}},
        {"data": {"normalize": {"mean": [0.5], "std": [0.5]}}},
        {"data": {"validation": "a", "test": "b", "validation_fraction": 0.2}, "task": "oops"},
        {"objective": {"metric": "loss", "direction": "minimize"}, "budget": {"target": 3}},
        {"objective": {"metric": "matthews"}, "budget": {"target": -0.5}},
        {"pruner": {"name": "none", "percentile": 10, "first": 95}, "objective": {"rungs": 1}},
        {"objective": {"rungs": 1}},  # the default pruner was not asked for
        {"pruner": {"first": 90}},
        {"sampler": {"enqueue": [{}, {}]}, "budget": {"trials": 3}},
    ],
)
def test_what_makes_sense_together_has_no_problems(
    problems: Problems, changes: dict[str, Any]
) -> None:
    found = {problem.path for problem in problems(**changes)}
    assert found == (
        {"task", "data.validation_fraction"}
        if "task" in changes and changes["task"] == "oops"
        else set()
    )


def test_conditions_keep_frozen_backbones_and_random_weights_apart(
    problems: Problems, tmp_path: Path
) -> None:
    (tmp_path / "w.pt").touch()
    space = {
        "model.weights": ["w.pt", "none"],
        "freeze": {"values": ["none", "backbone"], "when": {"model.weights": "w.pt"}},
    }
    assert problems(space=space) == []
    space["freeze"] = ["none", "backbone"]
    assert [problem.path for problem in problems(space=space)] == ["space.freeze"]


def test_a_model_in_the_space_needs_weights_that_it_can_have(problems: Problems) -> None:
    space: dict[str, Any] = {
        "model.name": ["builtin:convnet", "torchvision:resnet18"],
        "model.weights": {
            "values": ["DEFAULT", "none"],
            "when": {"model.name": "torchvision:resnet18"},
        },
    }
    assert problems(space=space) == []
    space["model.weights"] = ["DEFAULT", "none"]
    assert [problem.path for problem in problems(space=space)] == ["space.model.weights"]
