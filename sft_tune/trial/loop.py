"""One fine-tuning run, from its configuration to its best checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from sft_tune.errors import TrialError
from sft_tune.spec.config import TrialConfig
from sft_tune.trial import graphs, resume
from sft_tune.trial.compiling import Asked, use_compiled
from sft_tune.trial.conclude import outcome_of
from sft_tune.trial.data import prepare
from sft_tune.trial.data.joined import with_validation
from sft_tune.trial.device import (
    is_out_of_memory,
    memory_of_its_own,
    memory_report,
    open_device,
    peak_memory,
)
from sft_tune.trial.features import use_features
from sft_tune.trial.mirror import Mirror
from sft_tune.trial.monitors import Monitors
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.remembered import Remembered
from sft_tune.trial.resume import TrialState
from sft_tune.trial.rungs import Ending, at_rung
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import Trainee, set_up
from sft_tune.trial.updates import UpdateRatio
from sft_tune.trial.verdict import LastRung, Verdict


@dataclass(frozen=True)
class Hooks:
    """What the trial asks its surroundings, and is told by them (see `run_trial`)."""

    report: Callable[[Evaluation], bool | Verdict]
    should_stop: Callable[[], bool]
    checkpoint_seconds: float
    evaluation_batch_size: int
    mirror: Mirror | None
    refit_to: int | None
    feature_cache: bool
    compiled: Asked
    cache: Path


def run_trial(
    config: TrialConfig,
    paths: TrialPaths,
    *,
    device: str,
    cache: Path,
    report: Callable[[Evaluation], bool | Verdict],
    should_stop: Callable[[], bool],
    checkpoint_seconds: float,
    evaluation_batch_size: int,
    mirror: Mirror | None = None,
    refit_to: int | None = None,
    feature_cache: bool = True,
    compiled: Asked = False,
    kept_from: float | None = None,
) -> Outcome:
    """Fine-tune ``config``, or go on with it where ``paths`` hold a checkpoint of it.

    The same configuration gives the same bits on the same CPU with the same number of threads,
    however often it is stopped or killed and run again. A rung that was reported after the last
    checkpoint is then reported again, with the same numbers but ``seconds``.

    Args:
        config: the complete configuration.
        paths: the trial's folder; it is created.
        device: ``cpu``, or ``cuda:N``.
        cache: folder of prepared data, and of micro-batches that have worked.
        report: told of every rung; returns whether to go on, or what will say so while the trial
            trains on, to the next rung at most. Once that is said, the rung must be on record:
            the next checkpoint is behind it.
        should_stop: asked before each step; then the trial is saved, to go on another time.
        checkpoint_seconds: save what a resume needs after a rung, when so much time has passed.
        evaluation_batch_size: examples per batch of the validation split.
        mirror: copies what must outlive this machine to another place; None: nothing must.
        feature_cache: whether the features of a frozen backbone are computed once and kept.
        compiled: whether to train through `torch.compile` (see `sft_tune.trial.compiling`).
        kept_from: write no weights where the objective's best value is worse than this.
        refit_to: train on train and validation together, and keep the weights of the rung at
            this percent: validation, which is then trained on, says no longer which is the best.

    Raises:
        DataError: when the data is not what the configuration says.
        ModelError: when the model or its weights do not fit.
        TrialError: when the best weights cannot be written.
        StorageError: when they cannot be copied by ``mirror``.
    """
    where = open_device(device)
    hooks = Hooks(
        report,
        should_stop,
        checkpoint_seconds,
        evaluation_batch_size,
        mirror,
        refit_to,
        feature_cache,
        compiled,
        cache,
    )
    state, rung = TrialState(), LastRung()
    create(paths)
    with memory_of_its_own(where), graphs.none_left(where):
        try:
            # Not named here, so that the model is gone when this is left.
            ending = _train(_begin(config, paths, state, where, hooks), paths, state, hooks, rung)
        except Exception as error:
            # What goes wrong after the rung that a trial ends at is not what it ends of.
            judged = rung.ending(state, wait=True)
            if judged is None and not is_out_of_memory(error):
                raise
            ending = judged or _out_of_memory(error, where, state)
        peak = peak_memory(where)
    return outcome_of(paths, config, state, ending, peak, mirror, kept_from)


def _out_of_memory(error: Exception, where: torch.device, state: TrialState) -> Ending:
    return Ending("out_of_memory", f"after step {state.step}: {memory_report(error, where)}")


class Begun(NamedTuple):
    """A trial at its first step, or at the one that it goes on from."""

    trainee: Trainee
    monitors: Monitors
    working: Remembered


def _begin(
    config: TrialConfig,
    paths: TrialPaths,
    state: TrialState,
    where: torch.device,
    hooks: Hooks,
) -> Begun:
    """Make data, model and what watches them, and restore what a checkpoint holds."""
    data = prepare(config.task, config.data, config.model, cache=hooks.cache)
    if hooks.refit_to is not None:
        data = with_validation(data)
    state.clock.start()
    with state.clock.aside(where):
        trainee = set_up(config, data, where)
        working = Remembered(hooks.cache, trainee)
        trainee.portion.begin(working.recall())
        state.training = trainee.portion
        monitors = Monitors(where, norms_may_overflow=trainee.dtype is torch.float16)
        if hooks.mirror is not None:
            state.notes += hooks.mirror.fetch()
        resume.restore(paths, trainee, state, monitors)
        trainee.enter(state.step)  # a backbone that is trained by now has no features to keep
        if hooks.feature_cache:
            note = use_features(trainee, hooks.cache, hooks.evaluation_batch_size)
            state.notes += [note] if note else []
            state.cached_features |= bool(trainee.features)
        trainee.hold_examples()
        state.horizon = trainee.plan.horizon
        trainee.set_training_mode()
        if not trainee.features:
            _compile(trainee, state, hooks)
    return Begun(trainee, monitors, working)


def _compile(trainee: Trainee, state: TrialState, hooks: Hooks) -> None:
    """Compile what is trained from here on, where that is asked for; heads on features are not."""
    use_compiled(
        trainee,
        hooks.compiled,
        hooks.cache,
        step=state.step,
        before=state.compiled,
        tell=state.notes.append,
    )
    state.compiled = trainee.model.compiled is not None


def _train(
    begun: Begun, paths: TrialPaths, state: TrialState, hooks: Hooks, rung: LastRung
) -> Ending:
    """Train to the horizon, or to where the trial is stopped, pruned or diverges.

    The verdict on a rung is looked for before each step, and waited for where something depends
    on it: at the next rung, at an end, and where the last one came too late for a checkpoint.
    """
    trainee, monitors, working = begun
    plan, saved_at, due = trainee.plan, time.monotonic(), False
    updates = UpdateRatio(plan.horizon, plan.rungs)
    while state.step < plan.horizon:
        if ending := rung.ending(state):
            return ending
        if due and rung.is_settled:
            save(paths, trainee, state, monitors, hooks.mirror)
            saved_at, due = time.monotonic(), False
        if hooks.should_stop():
            if ending := rung.ending(state, wait=True):
                return ending
            save(paths, trainee, state, monitors, None)  # copied once, at the end
            return Ending("stopped", f"asked to, after step {state.step} of {plan.horizon}")

        # First, so that what is measured is what the step trains.
        if trainee.enter(state.step):
            # What follows may take minutes, for nothing where the trial has been pruned.
            if ending := rung.ending(state, wait=True):
                return ending
            with state.clock.aside(trainee.device):
                trainee.hold_examples()
                _compile(trainee, state, hooks)
        weights = updates.before(trainee.optimizer, state.step)
        loss, norm, size = train_step(trainee, state.step)
        working.keep(trainee.portion.found)
        state.step += 1
        state.samples += size
        monitors.add(loss, norm, size, updates.after(weights))

        at_one = state.step in plan.rungs
        fault = monitors.fault(state.step, at_rung=at_one)
        if at_one or fault is not None:
            if ending := rung.ending(state, wait=True):
                return ending
        if fault is not None:
            return Ending("diverged", f"{fault} of {plan.horizon}")
        if not at_one:
            continue

        reached = at_rung(trainee, state, monitors, hooks.evaluation_batch_size, hooks.refit_to)
        if isinstance(reached, Ending):
            return reached
        rung.report(hooks.report(reached), reached, trainee, state)
        if ending := rung.ending(state, wait=due):
            return ending
        due = due or time.monotonic() - saved_at >= hooks.checkpoint_seconds
    return rung.ending(state, wait=True) or Ending("completed")


def save(
    paths: TrialPaths,
    trainee: Trainee,
    state: TrialState,
    monitors: Monitors,
    mirror: Mirror | None,
) -> None:
    """Save what a resume needs. A full disk is noted: the trial itself can do without."""
    with state.clock.aside(trainee.device):
        try:
            resume.save(paths, trainee, state, monitors)
            if mirror is not None:
                mirror.saved(state.step)
                state.unsaved += mirror.complaints()
        except OSError as error:
            state.unsaved.append(f"no checkpoint after step {state.step}: {error}")


def create(paths: TrialPaths) -> None:
    """Make the trial's folder.

    Raises:
        TrialError: when it cannot be made.
    """
    try:
        paths.create()
    except OSError as error:
        raise TrialError(f"the trial's folder cannot be created: {error}; give another") from error
