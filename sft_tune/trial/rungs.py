"""What happens at a rung: the trial is evaluated, its best weights are kept, it may end.

Every rung but the last may be evaluated on a part of the validation split, the same part for all
trials (`sft_tune.spec.evaluating`). Pruners compare trials at one rung, so they compare like with
like. But a value on the part and one on the whole split are two measurements, and the best of many
noisy ones is too good: so only values on the whole split compete to be the trial's own. The rung
that was best on the part is a candidate; its weights wait until the trial ends, and are then
evaluated on the whole split beside those of the last rung.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from sft_tune.spec.objective import ObjectiveSpec, resolve_direction
from sft_tune.trial.best import Best
from sft_tune.trial.candidate import Candidate
from sft_tune.trial.data.subset import Subset
from sft_tune.trial.device import peak_memory
from sft_tune.trial.evaluate import predict
from sft_tune.trial.monitors import Monitors
from sft_tune.trial.outcome import Evaluation, Reason
from sft_tune.trial.resume import TrialState
from sft_tune.trial.tasks import Outputs, task_of
from sft_tune.trial.trainee import Trainee

Metrics = dict[str, float]


@dataclass(frozen=True)
class Ending:
    """Why a trial ended, and the evidence in words."""

    reason: Reason
    note: str = ""


def at_rung(
    trainee: Trainee,
    state: TrialState,
    monitors: Monitors,
    batch_size: int,
    refit_to: int | None = None,
    outputs: Callable[[Tensor | None], Outputs] | None = None,
) -> Evaluation | Ending:
    """Evaluate at the rung that was reached, and keep the weights if they are the best.

    ``outputs`` gives those for validation, or for rows of it, as the module would; without it the
    module is asked.

    Returns:
        The numbers to report, or the end of a trial that has diverged.
    """
    progress = trainee.plan.rungs[state.step]
    subset = None if refit_to is not None else trainee.subset
    last = state.step == state.horizon
    with trainee.averaged():
        with state.clock.aside(trainee.device):
            seconds = state.clock.lap()
            rows = None if subset is None or last else subset.rows
            if outputs is None:
                kept = _outputs(trainee, state, batch_size, rows)
            else:
                kept = outputs(rows)
            metrics = _metrics(trainee, kept, None if last else subset)
        evaluation = _evaluation(trainee, state, monitors, metrics, seconds)
        if not last and subset is not None:
            evaluation = replace(evaluation, examples=len(subset))
        if not math.isfinite(metrics["loss"]):
            note = f"validation loss became {metrics['loss']} at step {state.step}"
            return Ending("diverged", f"{note} of {state.horizon}")
        if subset is None:
            if refit_to in (None, progress):
                _keep_if_best(trainee, state, evaluation, state.step)
        elif last:
            on_part = {name: tensor[subset.rows] for name, tensor in kept.items()}
            part = _metrics(trainee, on_part, subset)
            _keep_if_best(trainee, state, evaluation, state.step)
            _decide(trainee, state, batch_size, part)
        else:
            _note_candidate(trainee, state, evaluation)
    if outputs is None:
        trainee.set_training_mode()
    training, objective = trainee.config.training, trainee.config.objective
    maximize = resolve_direction(objective) == "maximize"
    value = evaluation.metrics[objective.metric]
    state.patience.note(value, maximize=maximize, least=training.min_change)
    if subset is not None and not last and _is_out_of_patience(trainee, state):
        _decide(trainee, state, batch_size, None)
    return evaluation


def after_rung(
    evaluation: Evaluation, trainee: Trainee, state: TrialState, *, go_on: bool
) -> Ending | None:
    """Return how the trial ends after the rung ``evaluation``; None: it goes on."""
    if state.step == state.horizon:
        return Ending("completed")
    where = f"at {evaluation.progress} % of its horizon"
    if not go_on:
        return Ending("pruned", where)
    if _is_out_of_patience(trainee, state):
        waited = state.patience.waited
        return Ending("early_stopped", f"{where}, after {waited} rungs without improvement")
    return None


def _is_out_of_patience(trainee: Trainee, state: TrialState) -> bool:
    patience = trainee.config.training.patience
    return patience is not None and state.patience.waited >= patience


def _outputs(trainee: Trainee, state: TrialState, batch_size: int, rows: Tensor | None) -> Outputs:
    """Return what is kept of the model's outputs for validation, or for ``rows`` of it."""
    return predict(
        task_of(trainee.config.task, trainee.config.data),
        trainee.model,
        trainee.features.get("validation", trainee.data.validation),
        device=trainee.device,
        dtype=trainee.dtype,
        batch_size=batch_size,
        portion=state.evaluation,
        rows=rows,
    )


def _metrics(trainee: Trainee, kept: Outputs, subset: Subset | None) -> Metrics:
    config, data = trainee.config, trainee.data
    truth = data.validation if subset is None else subset.truth
    return task_of(config.task, config.data).metrics([config.objective.metric], kept, truth, data)


def _evaluation(
    trainee: Trainee, state: TrialState, monitors: Monitors, metrics: Metrics, seconds: float
) -> Evaluation:
    """Return the numbers of the rung that was reached; monitors begin anew.

    ``seconds`` are those of training since the rung before.
    """
    evaluation = Evaluation(
        progress=trainee.plan.rungs[state.step],
        epoch=state.step / trainee.plan.steps_per_epoch,
        step=state.step,
        horizon=state.horizon,
        train_loss=monitors.train_loss(),
        metrics=metrics,
        learning_rate=trainee.learning_rate(state.step - 1),
        gradient_norm=monitors.gradient_norm(),
        seconds=state.clock.total(),
        gradient_norm_max=monitors.gradient_norm_max(),
        update_ratio=monitors.update_ratio(),
        samples_per_second=monitors.samples() / seconds if seconds > 0 else None,
        memory=peak_memory(trainee.device),
        unsaved="; ".join(state.unsaved),
    )
    state.notes += state.unsaved
    state.unsaved = []
    monitors.clear()
    return evaluation


def _keep_if_best(
    trainee: Trainee,
    state: TrialState,
    evaluation: Evaluation,
    step: int,
    *,
    or_equal: bool = False,
) -> None:
    """Copy the weights when the objective is better than at every rung before."""
    objective = trainee.config.objective
    value = evaluation.metrics[objective.metric]
    if state.best is not None and not _is_better(
        objective, value, state.best.value, or_equal=or_equal
    ):
        return
    state.best = Best.of(trainee, value, evaluation, step, state.best)


def _is_better(
    objective: ObjectiveSpec, value: float, other: float, *, or_equal: bool = False
) -> bool:
    """Tell whether ``value`` is the better one; of what is not a number, that it is not worse."""
    gain = value - other if resolve_direction(objective) == "maximize" else other - value
    return not (gain < 0 or (gain == 0 and not or_equal))


def _note_candidate(trainee: Trainee, state: TrialState, evaluation: Evaluation) -> None:
    """Copy the weights when the objective is better than at every early rung before."""
    objective = trainee.config.objective
    value, known = evaluation.metrics[objective.metric], state.candidate
    if known is not None and not _is_better(
        objective, value, known.evaluation.metrics[objective.metric]
    ):
        return
    state.candidate = Candidate.of(trainee, evaluation, state.step)


def _decide(trainee: Trainee, state: TrialState, batch_size: int, last: Metrics | None) -> None:
    """Evaluate the candidate on the whole split; it is the trial's best unless another is better.

    Args:
        trainee: it has its own weights again afterwards.
        state: of the trial.
        batch_size: of evaluation.
        last: metrics of the last rung on the candidate's part; where they are better, the
            candidate is none. None: this is not the last rung.
    """
    candidate, objective = state.candidate, trainee.config.objective
    if candidate is None:
        return
    value = candidate.evaluation.metrics[objective.metric]
    if last is not None and _is_better(objective, last[objective.metric], value):
        return
    with state.clock.aside(trainee.device), candidate.in_place(trainee.model.module):
        kept = _outputs(trainee, state, batch_size, None)
        whole = replace(candidate.evaluation, metrics=_metrics(trainee, kept, None), examples=None)
        if math.isfinite(whole.metrics["loss"]):
            _keep_if_best(trainee, state, whole, candidate.step, or_equal=True)
