"""Early rungs on a part of validation: what is measured on it, and what may be a trial's value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint
from sft_tune.trial.candidate import Candidate
from sft_tune.trial.data import prepare
from sft_tune.trial.data.arrays import BoxSplit, Ragged, TextSplit
from sft_tune.trial.data.subset import early_subset, truth_of
from sft_tune.trial.evaluate import predict
from sft_tune.trial.monitors import Monitors
from sft_tune.trial.outcome import Evaluation
from sft_tune.trial.resume import TrialState
from sft_tune.trial.rungs import at_rung
from sft_tune.trial.tasks import task_of
from sft_tune.trial.trainee import set_up
from tests.trial.test_resume import KilledError, after, check_same

Configure = Callable[..., TrialConfig]
RUNGS = 6


def on(configure: Configure, evaluate: Any, **sections: Any) -> TrialConfig:
    objective = {"rungs": RUNGS, "evaluate": evaluate, **sections.pop("objective", {})}
    return configure(objective=objective, **sections)


def by_progress(runner: Any) -> dict[int, Evaluation]:
    return {evaluation.progress: evaluation for evaluation in runner.evaluations}


def expected_value(part: Any, whole: Any, subset: dict[str, float], metric: str) -> float:
    """Return the value by the rule in `sft_tune.trial.rungs`, of rungs measured both ways."""
    sign = -1 if metric == "loss" else 1
    early = [e for e in part.evaluations if e.examples is not None]
    candidate = max(early, key=lambda e: (sign * e.metrics[metric], -e.progress))
    ends = [whole.evaluations[-1]]
    if sign * subset[metric] <= sign * candidate.metrics[metric]:
        ends.append(by_progress(whole)[candidate.progress])
    return max((e.metrics[metric] for e in ends), key=lambda value: sign * value)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
@pytest.mark.parametrize("rate", [0.003, 0.03])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_only_values_on_the_whole_split_compete(
    new_runner: Any, digits: Configure, seed: int, rate: float, metric: str
) -> None:
    sections: dict[str, Any] = {
        "data": {"train_limit": 48, "validation_limit": 60},
        "training": {"learning_rate": rate, "optimizer": "adam"},
        "seed": seed,
        "objective": {"metric": metric},
    }
    part, whole = new_runner("part"), new_runner("whole")
    outcome = part.run(on(digits, 12, **sections))
    whole.run(on(digits, "all", **sections))
    assert [e.examples for e in part.evaluations] == [12] * (RUNGS - 1) + [None]
    assert part.evaluations[-1].metrics == whole.evaluations[-1].metrics
    at_best = by_progress(whole)[outcome.best_progress]
    assert (outcome.value, outcome.metrics) == (at_best.metrics[metric], at_best.metrics)
    config = on(digits, 12, **sections)
    subset = last_on_part(config, part)
    assert outcome.value == expected_value(part, whole, subset, metric)


def last_on_part(config: TrialConfig, runner: Any) -> dict[str, float]:
    """Return the metrics, on the part, of the weights of the last rung."""
    # The same training with no early rung keeps the last weights.
    alone = config.model_copy(
        update={"objective": config.objective.model_copy(update={"rungs": 1})}
    )
    paths = type(runner.paths)(runner.paths.root.with_name("alone"))
    type(runner)(paths, runner.cache).run(alone)
    data = prepare(config.task, config.data, config.model, cache=runner.cache)
    trainee = set_up(config, data, torch.device("cpu"))
    trainee.model.module.load_state_dict(checkpoint.read(paths.best)[0])
    assert trainee.subset is not None
    kept = predict(
        task_of(config.task, config.data),
        trainee.model,
        data.validation,
        device=torch.device("cpu"),
        dtype=torch.float32,
        batch_size=16,
        rows=trainee.subset.rows,
    )
    names = [config.objective.metric]
    return task_of(config.task, config.data).metrics(names, kept, trainee.subset.truth, data)


def test_the_weights_are_those_of_the_rung_that_is_called_the_best(
    new_runner: Any, digits: Configure
) -> None:
    """With rates this large the last rung is not the best, so the candidate's come back."""
    training = {"learning_rate": 0.05, "schedule": "constant", "warmup": 0.0}
    data = {"train_limit": 48, "validation_limit": 60}
    for seed in range(20):
        part, whole = new_runner(f"part-{seed}"), new_runner(f"whole-{seed}")
        config = on(digits, 30, training=training, data=data, seed=seed)
        outcome = part.run(config)
        if outcome.best_progress == 100:
            continue
        whole.run(
            on(digits, "all", training=training, data=data, seed=seed),
            report=lambda e, at=outcome.best_progress: e.progress < at,
        )
        ours, theirs = checkpoint.read(part.paths.best), None
        # Pruned there: its last weights are those of the rung, whatever its best.
        state = checkpoint.read(whole.paths.best)
        if state[1]["progress"] != outcome.best_progress:
            continue
        theirs = state
        assert all(torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])
        assert ours[1]["metrics"] == theirs[1]["metrics"]
        return
    pytest.fail("in none of 20 trials an early rung was the best of both")


def test_a_part_is_the_same_for_all_trials_and_stratified(
    digits: Configure, tmp_path: Path
) -> None:
    data = {"train_limit": 48, "validation_limit": 60, "classes": [0, 1, 2]}
    configs = [
        on(digits, 12, data=data, seed=seed, training={"epochs": epochs})
        for seed, epochs in ((1, 2), (2, 5))
    ]
    prepared = prepare(configs[0].task, configs[0].data, configs[0].model, cache=tmp_path)
    one, two = (early_subset(config, prepared) for config in configs)
    assert one is not None and two is not None
    assert torch.equal(one.rows, two.rows)
    assert np.bincount(one.truth.targets).tolist() == [4, 4, 4]
    other = early_subset(on(digits, 12, data={**data, "split_seed": 1}), prepared)
    assert other is not None and not torch.equal(one.rows, other.rows)


def test_small_studies_are_measured_as_they_were(digits: Configure, tmp_path: Path) -> None:
    config = digits(data={"train_limit": None, "validation_limit": None, "classes": None})
    data = prepare(config.task, config.data, config.model, cache=tmp_path)
    assert len(data.validation) > 300
    assert early_subset(config, data) is None


def test_outputs_of_some_rows_are_those_of_all_at_these_places(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure()
    data = prepare(config.task, config.data, config.model, cache=tmp_path)
    trainee = set_up(config, data, torch.device("cpu"))
    rows = torch.tensor([7, 1, 4, 2])
    task = task_of(config.task, config.data)
    options: dict[str, Any] = {"device": trainee.device, "dtype": torch.float32, "batch_size": 3}
    whole = predict(task, trainee.model, data.validation, **options)
    some = predict(task, trainee.model, data.validation, **options, rows=rows)
    assert torch.allclose(some["logits"], whole["logits"][rows], atol=1e-6)


def test_texts_keep_what_they_are_measured_by() -> None:
    offsets = np.array([0, 2, 3, 6])
    words = Ragged(np.frombuffer(b"onetwothree", dtype=np.uint8), np.array([0, 3, 6, 11]))
    split = TextSplit(
        tokens=np.arange(6, dtype=np.int32),
        offsets=offsets,
        targets=np.array([0, 1, 2]),
        pad_id=0,
        tags=np.array([5, 6, 7, 8, 9, 10], dtype=np.int32),
        references=words,
    )
    truth = truth_of(split, np.array([0, 2]))
    assert isinstance(truth, TextSplit) and truth.tags is not None
    assert truth.tokens.tolist() == [0, 1, 3, 4, 5]
    assert truth.tags.tolist() == [5, 6, 8, 9, 10]
    assert truth.offsets.tolist() == [0, 2, 5]
    assert truth.references is not None
    assert [truth.references.text(i) for i in range(2)] == ["one", "three"]


def test_images_keep_their_boxes() -> None:
    split = BoxSplit(
        pixels=np.zeros(36, dtype=np.uint8),
        offsets=np.array([0, 12, 24, 36]),
        sizes=np.array([[2, 2], [2, 2], [4, 1]]),
        boxes=np.arange(16, dtype=np.float32).reshape(4, 4),
        box_labels=np.array([0, 1, 2, 3]),
        crowds=np.array([0, 1, 0, 1], dtype=np.uint8),
        targets=np.array([1, 0, 3]),
    )
    truth = truth_of(split, np.array([1, 2]))
    assert isinstance(truth, BoxSplit)
    assert truth.box_labels.tolist() == [1, 2, 3] and truth.crowds.tolist() == [1, 0, 1]
    assert truth.boxes[0].tolist() == [4, 5, 6, 7]
    assert (truth.sizes.tolist(), truth.targets.tolist()) == ([[2, 2], [4, 1]], [0, 3])


def test_a_trial_that_is_pruned_before_has_no_value(runner: Any, digits: Configure) -> None:
    outcome = runner.run(on(digits, 12), report=lambda e: e.progress < 50)
    assert outcome.reason == "pruned"
    assert (outcome.value, outcome.metrics, outcome.best_progress) == (None, {}, None)
    assert outcome.checkpoint is None and not runner.paths.best.exists()


def test_a_trial_that_stops_early_has_its_best_rung_measured_on_all(
    new_runner: Any, digits: Configure
) -> None:
    training = {"learning_rate": 1e-6, "patience": 2, "min_change": 0.5, "epochs": 3}
    part, whole = new_runner("part"), new_runner("whole")
    outcome = part.run(on(digits, 12, training=training))
    whole.run(on(digits, "all", training={**training, "patience": None}))
    assert outcome.reason == "early_stopped"
    assert len(part.evaluations) == 3 and part.evaluations[-1].examples == 12
    assert outcome.metrics == by_progress(whole)[outcome.best_progress].metrics
    assert part.paths.best.is_file()


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_a_trial_killed_at_any_step_has_the_same_candidate(
    new_runner: Any, configure: Configure, checkpoint_seconds: float
) -> None:
    config = on(configure, 6, training={"learning_rate": 0.02}, objective={"rungs": 5})
    calm = new_runner("calm")
    horizon = calm.run(config).horizon
    for at in range(1, horizon, 3):
        disturbed = new_runner(f"killed-{at}-{checkpoint_seconds}")
        with pytest.raises(KilledError):
            disturbed.run(
                config,
                should_stop=after(at, KilledError),
                checkpoint_seconds=checkpoint_seconds,
            )
        disturbed.run(config)
        check_same(disturbed, calm)


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"averaging": "ema", "ema_decay": 0.5}},
        {"training": {"averaging": "swa", "swa_start": 0.2}},
        {"model": {"lora_rank": 2}},
        {"training": {"freeze": "backbone"}},
    ],
)
def test_candidates_come_back_whatever_the_weights_are(
    new_runner: Any, sentences: Configure, change: dict[str, Any]
) -> None:
    if "model" in change:
        pytest.importorskip("peft")
    training = {"learning_rate": 0.05, "schedule": "constant", "warmup": 0.0, "epochs": 3}
    came_back = 0
    for seed in range(6):
        sections = {**change, "seed": seed, "training": {**training, **change.get("training", {})}}
        part, whole = new_runner(f"part-{seed}"), new_runner(f"whole-{seed}")
        outcome = part.run(on(sentences, 8, **sections))
        whole.run(on(sentences, "all", **sections))
        assert part.evaluations[-1].metrics == whole.evaluations[-1].metrics
        at_best = by_progress(whole)[outcome.best_progress]
        assert outcome.metrics == pytest.approx(at_best.metrics, abs=1e-6)
        came_back += outcome.best_progress < 100
        if came_back:
            return
    assert came_back


@pytest.mark.parametrize(("on_part", "best"), [(1.1, 50), (-0.1, 100)])
def test_of_equals_the_earlier_is_the_best_and_what_was_worse_on_the_part_is_out(
    digits: Configure, tmp_path: Path, on_part: float, best: int
) -> None:
    """Candidate and last rung have the same weights here, so the same value on the whole."""
    config = on(digits, 12)
    data = prepare(config.task, config.data, config.model, cache=tmp_path)
    trainee = set_up(config, data, torch.device("cpu"))
    state = TrialState(step=trainee.plan.horizon, horizon=trainee.plan.horizon)
    early = Evaluation(
        *(50, 1.0, 6, state.horizon, 1.0, {"accuracy": on_part, "loss": 1.0}, 0.1, 1.0, 1.0),
        examples=12,
    )
    state.candidate = Candidate.of(trainee, early, 6)
    monitors = Monitors(trainee.device, norms_may_overflow=False)
    monitors.add(1.0, 1.0, 8)
    reached = at_rung(trainee, state, monitors, 16)
    assert isinstance(reached, Evaluation) and state.best is not None
    assert state.best.progress == best
    assert state.best.metrics == reached.metrics
