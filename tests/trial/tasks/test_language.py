"""Causal language models: packed rows, the loss, a trial's resume, and what is exported."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.check import probe
from sft_tune.trial.data import Batch, Prepared, TextSplit, gather, prepare
from sft_tune.trial.data.joined import with_validation
from sft_tune.trial.evaluate import evaluate
from sft_tune.trial.export.verify import verify
from sft_tune.trial.export.write import export
from sft_tune.trial.load import load_checkpoint
from sft_tune.trial.losses import IGNORED
from sft_tune.trial.models import build_model
from sft_tune.trial.step import train_step
from sft_tune.trial.tasks import language
from sft_tune.trial.trainee import Trainee, set_up
from tests.trial.test_folds import Machine
from tests.trial.writers import write_model

Configure = Callable[..., TrialConfig]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("gpt2", "llama", "mamba", "bert"):
        write_model(folder / kind, kind)
    return folder


@pytest.fixture
def writing(models: Path, tmp_path: Path) -> Configure:
    """Make a configuration: letters for numbers, 32 to train on, 8 to validate."""
    generator = random.Random(0)
    letters = dict(zip(("one", "two", "three", "four"), "abcd", strict=True))
    rows = []
    for _ in range(40):
        words = generator.choices(list(letters), k=generator.randint(1, 5))
        answer = " ".join(letters[word] for word in words)
        rows.append({"prompt": f"{' '.join(words)} =", "completion": answer})
    source = tmp_path / "letters.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def configure(kind: str = "gpt2", **sections: dict[str, Any]) -> TrialConfig:
        settings: dict[str, dict[str, Any]] = {
            "data": {"source": str(source), "max_length": 32},
            "model": {"name": f"transformers:{models / kind}"},
            "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.003},
            "objective": {"rungs": 2, "metric": "perplexity"},
        }
        for name, section in sections.items():
            settings[name] |= section
        return TrialConfig.model_validate({"task": "causal-lm", "seed": 1, **settings})

    return configure


@pytest.mark.parametrize("packing", [False, True])
def test_folds_share_out_the_examples_and_their_mean_is_the_value(
    writing: Configure, tmp_path: Path, packing: bool
) -> None:
    config = writing(data={"folds": 2, "packing": packing}, training={"epochs": 2})
    machine = Machine(tmp_path / "trial", tmp_path / "cache")
    outcome = machine.run(config)
    alone = [Machine(tmp_path / f"alone-{i}", tmp_path / "cache") for i in range(2)]
    values = [one.train(config.of_fold(i)).value for i, one in enumerate(alone)]
    assert outcome.value == sum(value or 0.0 for value in values) / 2
    assert outcome.flags["folds"]["values"] == values and values[0] != values[1]
    halves = [prepared(config.of_fold(i), tmp_path).facts["examples"] for i in range(2)]
    assert [half["validation"] for half in halves] == [20, 20]


def prepared(config: TrialConfig, tmp_path: Path) -> Prepared:
    return prepare(config.task, config.data, config.model, cache=tmp_path / "cache")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_example_in_a_row_with_others_is_answered_as_alone(
    kind: str, writing: Configure, tmp_path: Path
) -> None:
    config = writing(kind, data={"packing": True})
    data = with_validation(prepared(config, tmp_path))
    train = data.train
    assert isinstance(train, TextSplit) and train.segments is not None
    model = build_model(config.task, config.model, ())
    model.module.eval()
    batch = gather(train, torch.tensor([0, 1, len(train) - 1]), "cpu")
    segments, ids = batch.inputs["segments"], batch.inputs["input_ids"]
    assert segments.max() > 2
    with torch.inference_mode():
        together = model.logits(batch.inputs)
        reduced = _in_bf16(model, batch.inputs)
        for row in range(3):
            for segment in range(1, int(segments[row].max()) + 1):
                here = segments[row] == segment
                alone = model.module(input_ids=ids[row : row + 1, here]).logits[0]
                assert torch.allclose(together[row, here], alone, atol=1e-5)
                assert torch.allclose(reduced[row, here], alone, atol=0.3)


def _in_bf16(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model.logits(inputs).float()  # type: ignore[no-any-return]


def test_the_loss_is_the_librarys_and_micro_batches_add_up_to_it(
    writing: Configure, tmp_path: Path
) -> None:
    config = writing()
    train = prepared(config, tmp_path).train
    model = build_model(config.task, config.model, ())
    model.module.eval()
    batch = gather(train, torch.arange(6), "cpu")
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    # As the library shifts them: the token before is answered by the one that is learnt.
    labels = torch.full((len(ids), ids.shape[1] + 1), IGNORED)
    labels[:, 1:] = batch.targets
    pad = torch.zeros_like(ids[:, :1])
    whole = torch.cat([ids, pad], dim=1), torch.cat([mask, pad], dim=1)
    expected = model.module(input_ids=whole[0], attention_mask=whole[1], labels=labels).loss
    total = language.weight(batch)
    assert total == int((batch.targets != IGNORED).sum()) and total > len(ids)
    for sizes in ([6], [1, 2, 3], [1] * 6):
        shares = []
        for rows in torch.arange(6).split(sizes):
            part = gather(train, rows, "cpu")
            outputs = model.logits(part.inputs)
            shares.append(language.share_of_loss(outputs, part, total, TrainingSpec()))
        assert torch.allclose(torch.stack(shares).sum(), expected, atol=1e-6)


def test_metrics_are_of_tokens_however_they_are_batched(writing: Configure, tmp_path: Path) -> None:
    config = writing()
    data = prepared(config, tmp_path)
    model = build_model(config.task, config.model, ())
    options: dict[str, Any] = {"device": CPU, "dtype": torch.float32}
    arguments = (language, model, data.validation, ["loss"], data)
    found = [evaluate(*arguments, **options, batch_size=size) for size in (1, 3, 100)]
    assert found[1:] == [pytest.approx(found[0], rel=1e-6)] * 2
    losses, right = [], []
    for i in range(len(data.validation)):
        batch = gather(data.validation, torch.tensor([i]), "cpu")
        with torch.inference_mode():
            scores = model.logits(batch.inputs)[0].log_softmax(dim=1)
        for place, token in enumerate(batch.targets[0].tolist()):
            if token != IGNORED:
                losses.append(-float(scores[place, token]))
                right.append(int(scores[place].argmax()) == token)
    assert found[0] == pytest.approx(
        {
            "loss": np.mean(losses),
            "perplexity": np.exp(np.mean(losses)),
            "token_accuracy": np.mean(right),
        },
        rel=1e-5,
    )
    no = Batch({}, torch.full((2, 3), IGNORED))
    assert language.share_of_loss(torch.zeros(2, 3, 4), no, 5, TrainingSpec()) == 0


SECTIONS: list[tuple[str, dict[str, dict[str, Any]]]] = [
    (
        "gpt2",
        {
            "data": {"packing": True},
            "training": {"gradient_checkpointing": True, "batch_size": 2},
        },
    ),
    ("llama", {"model": {"lora_rank": 2, "lora_dropout": 0.1}, "training": {"averaging": "ema"}}),
    ("gpt2", {"training": {"freeze": "blocks", "layer_decay": 0.5, "micro_batch": 3}}),
]


@pytest.mark.parametrize(("kind", "sections"), SECTIONS, ids=["packed", "lora", "frozen"])
def test_a_stopped_trial_goes_on_bit_for_bit(
    kind: str,
    sections: dict[str, dict[str, Any]],
    writing: Configure,
    new_runner: Callable[[str], Any],
) -> None:
    config = writing(kind, **sections)
    whole, broken = new_runner("whole"), new_runner("broken")
    assert whole.run(config).reason == "completed"
    left = iter(range(1))
    assert broken.run(config, should_stop=lambda: next(left, None) is None).reason == "stopped"
    outcome = broken.run(config)
    assert outcome.reason == "completed" and outcome.resumed_from == 1
    assert broken.numbers() == whole.numbers()
    assert broken.best()[0] == whole.best()[0]


def started(config: TrialConfig, tmp_path: Path) -> Trainee:
    return set_up(config, prepared(config, tmp_path), CPU)


def test_packed_or_not_and_in_any_micro_batches_a_step_is_the_same(
    writing: Configure, tmp_path: Path
) -> None:
    """All examples in one batch: however they are laid out, the gradient is theirs."""
    found = []
    for data, training in (
        ({}, {}),
        ({"packing": True}, {}),
        ({"packing": True}, {"micro_batch": 1}),
        ({}, {"micro_batch": 5, "batching": "random"}),
    ):
        config = writing("llama", data=data, training={**training, "batch_size": 64})
        trainee = started(config, tmp_path)
        trainee.portion.begin(None)
        loss, norm, _ = train_step(trainee, 0)
        found.append((float(loss), float(norm)))
    assert found[1:] == [pytest.approx(found[0], rel=1e-5)] * 3


def test_frozen_embeddings_freeze_the_tied_last_layer(writing: Configure, tmp_path: Path) -> None:
    trainee = started(writing(training={"freeze": "blocks"}), tmp_path)
    module: Any = trainee.model.module
    assert module.lm_head.weight is module.transformer.wte.weight
    before = module.lm_head.weight.detach().clone()
    frozen, trained = (module.transformer.h[i].mlp.c_fc.weight.detach().clone() for i in (0, 1))
    for step in range(2):
        train_step(trainee, step)
    assert torch.equal(module.lm_head.weight, before)
    assert torch.equal(module.transformer.h[0].mlp.c_fc.weight, frozen)
    assert not torch.equal(module.transformer.h[1].mlp.c_fc.weight, trained)


@pytest.mark.parametrize(
    ("kind", "lora"), [("gpt2", {}), ("gpt2", {"lora_rank": 2}), ("llama", {})]
)
def test_exported_files_give_the_trials_numbers_and_write(
    kind: str, lora: dict[str, Any], writing: Configure, runner: Any, tmp_path: Path
) -> None:
    import transformers

    config = writing(kind, model={"lora_merge": False, **lora} if lora else {})
    outcome = runner.run(config)
    module: Any = load_checkpoint(runner.paths.best)
    tied = module.config.tie_word_embeddings
    assert (module.get_output_embeddings().weight is module.get_input_embeddings().weight) == tied
    folder, reference = tmp_path / "out", tmp_path / "reference.safetensors"
    folder.mkdir()
    where: dict[str, Any] = {"reference": reference, "device": "cpu", "cache": runner.cache}
    with pytest.raises(ModelError, match="causal-lm is not written as ONNX"):
        export(config, runner.paths.best, folder, onnx=True, **where)
    facts = export(config, runner.paths.best, folder, onnx=False, **where)
    assert (facts["outputs"], facts["labels"]) == ("text", [])
    found = verify(config, folder, onnx=False, call=facts["call"], batch_size=16, **where)
    assert found["difference"] < 1e-5
    assert found["metrics"] == pytest.approx(outcome.metrics, rel=1e-5)
    written = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("one two =", return_tensors="pt")
    assert written.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] >= 4


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("mamba", {"packing": True}, "does not keep the examples of a row apart"),
        ("bert", {}, "reads what comes after a token"),
    ],
)
def test_models_that_cannot_do_it_are_told(
    kind: str, data: dict[str, Any], message: str, writing: Configure, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        started(writing(kind, data=data), tmp_path)


def test_check_knows_language_models(writing: Configure, tmp_path: Path) -> None:
    facts = probe(writing(), [8], device="cpu", cache=tmp_path / "cache")
    assert facts["labels"] == [] and facts["batch_sizes"][0]["ok"]
    assert facts["metrics"]["perplexity"] > 1
