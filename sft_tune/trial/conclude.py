"""The end of a trial: its best weights written, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft_tune.errors import StorageError, TrialError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.objective import resolve_direction
from sft_tune.trial.best import write_best
from sft_tune.trial.mirror import Mirror
from sft_tune.trial.outcome import Outcome
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.resume import TrialState
from sft_tune.trial.rungs import Ending

# The best weights of trials that end so are not worth their way to another place.
NOT_KEPT = ("pruned", "diverged", "out_of_memory", "stopped")


def outcome_of(
    paths: TrialPaths,
    config: TrialConfig,
    state: TrialState,
    ending: Ending,
    peak: int,
    mirror: Mirror | None,
    kept_from: float | None = None,
) -> Outcome:
    """Write the best weights, and return how the trial ended.

    Weights of a value worse than ``kept_from`` are not written: nobody would keep them.

    Raises:
        TrialError: when they cannot be written.
        StorageError: when they cannot be copied to where they belong.
    """
    best, seconds, training = state.best, state.clock.total(), state.clock.training()
    worth = best is not None and not _is_worse(config, best.value, kept_from)
    if not worth:
        paths.best.unlink(missing_ok=True)  # of a time that it was stopped
    elif best is not None:
        try:
            write_best(paths.best, best)
        except OSError as error:
            raise TrialError(
                f"the best weights cannot be written: {error}; free space, then start again"
            ) from error
    kept_at = str(paths.best) if worth else None
    if mirror is not None:
        kept_at = _copied(mirror, state, ending, worth=worth)
    flags = _flags(state)
    notes = [ending.note, *state.notes, *state.unsaved, *_memory_notes(config, flags)]
    return Outcome(
        reason=ending.reason,
        note="; ".join(note for note in notes if note),
        value=best.value if best else None,
        metrics=dict(best.metrics) if best else {},
        best_progress=best.progress if best else None,
        steps=state.step,
        horizon=state.horizon,
        seconds=seconds,
        peak_memory=peak,
        samples_per_second=state.samples / training if training > 0 else 0.0,
        checkpoint=kept_at,
        resumed_from=state.resumed_from,
        flags=flags,
    )


def _is_worse(config: TrialConfig, value: float, than: float | None) -> bool:
    if than is None:
        return False
    return value < than if resolve_direction(config.objective) == "maximize" else value > than


def _copied(mirror: Mirror, state: TrialState, ending: Ending, *, worth: bool) -> str | None:
    """Copy what is needed of the trial to where it belongs; return where its best weights are.

    Raises:
        StorageError: when the best weights cannot be copied.
    """
    kept = worth and ending.reason not in NOT_KEPT
    if ending.reason == "stopped":
        mirror.leave(state.step)
    try:
        if kept:
            mirror.put_best()
    except OSError as error:
        raise StorageError(
            f"storage.artifacts: {error}; when it can be written, start again: the trial goes on "
            "from its last checkpoint"
        ) from error
    mirror.wait()
    state.notes += mirror.complaints()
    return mirror.best if kept else None


def _flags(state: TrialState) -> dict[str, Any]:
    """Return how the trial was run otherwise than its configuration says."""
    flags: dict[str, Any] = {}
    if state.cached_features:
        flags["cached_features"] = True
    if state.training.found is not None:
        flags["micro_batch"] = state.training.found
        if state.training.in_pairs:
            flags["batch_norm_per_micro_batch"] = True
    if state.evaluation.limit is not None:
        flags["evaluation_batch"] = state.evaluation.limit
    return flags


def _memory_notes(config: TrialConfig, flags: Mapping[str, Any]) -> list[str]:
    """Return ``flags`` in words."""
    notes = []
    if "micro_batch" in flags:
        size, tokens = config.training.batch_size, config.training.batch_tokens
        what = f"batch {size} does" if tokens is None else f"batches of {tokens} tokens do"
        batch = f"{what} not fit into memory"
        notes.append(f"in micro-batches of {flags['micro_batch']}: {batch}")
    if "batch_norm_per_micro_batch" in flags:
        notes.append("batch norm normalized each micro-batch by itself")
    if "evaluation_batch" in flags:
        notes.append(f"evaluated in batches of {flags['evaluation_batch']}: more do not fit")
    return notes
