"""The ends of a stack's trials: their best weights are written while the others train on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Generic, TypeVar

from sft_tune.spec.objective import resolve_direction
from sft_tune.trial.conclude import NOT_KEPT, outcome_of
from sft_tune.trial.outcome import Outcome
from sft_tune.trial.rungs import Ending
from sft_tune.trial.stack.member import Member

Name = TypeVar("Name", bound=Hashable)


class Endings(Generic[Name]):
    """Trials that have ended, until what is kept of them is on the disk."""

    def __init__(self, wake: Callable[[], None], keep: int | None) -> None:
        """Begin without any.

        Args:
            wake: called from another thread when one can be taken with `done`.
            keep: how many trials of a study keep their weights; None: all that complete.
        """
        self._wake = wake
        self._keep = keep
        self._futures: dict[Name, Future[Outcome]] = {}
        self._values: dict[Path, list[float]] = {}
        # One thread: it waits for one disk.
        self._thread = ThreadPoolExecutor(1)

    def __len__(self) -> int:
        """Return how many are not yet taken."""
        return len(self._futures)

    def add(self, name: Name, member: Member, ending: Ending, peak: int) -> None:
        """Let ``member`` end so; ``peak`` bytes of the device were used."""
        config = member.trainee.config
        kept_from = self._kept_from(member, ending)
        future = self._thread.submit(
            outcome_of,
            member.paths,
            config,
            member.state,
            ending,
            peak,
            member.mirror,
            kept_from,
        )
        self._futures[name] = future
        future.add_done_callback(lambda _: self._wake())

    def done(self) -> list[tuple[Name, Outcome | Exception]]:
        """Return those that have ended since this was last called, or what went wrong then."""
        found: list[tuple[Name, Outcome | Exception]] = []
        for name, future in list(self._futures.items()):
            if future.done():
                del self._futures[name]
                error = future.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                found.append((name, error or future.result()))
        return found

    def wait(self) -> None:
        """Return when all of them can be taken."""
        wait(self._futures.values())

    def drop(self, name: Name) -> None:
        """Tell nobody how ``name`` ended."""
        self._futures.pop(name, None)

    def _kept_from(self, member: Member, ending: Ending) -> float | None:
        """Return the value that keeps the weights of ``member``: those behind would be removed.

        The runner said what it was when the trial began; since then others may have completed.
        """
        best = member.state.best
        maximize = resolve_direction(member.trainee.config.objective) == "maximize"
        never = float("inf") if maximize else float("-inf")
        if best is None or self._keep is None:
            return member.kept_from
        if ending.reason in NOT_KEPT:
            return never
        values = self._values.setdefault(member.paths.root.parent, [])
        bars = [] if member.kept_from is None else [member.kept_from]
        if len(values) >= self._keep:
            bars.append(sorted(values, reverse=maximize)[self._keep - 1])
        values.append(best.value)
        if not bars:
            return None
        return max(bars) if maximize else min(bars)
