"""The live screen of a study that runs: numbers of `progress`, drawn anew a few times a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from sft_tune.spec.space import Value
from sft_tune.view import parts
from sft_tune.view.lines import wall_clock
from sft_tune.view.progress import Goal, Others, StudyProgress, nobody

MOST_ENDED = 6
REFRESHES = 4
"""Times a second that the screen is drawn."""


class LiveScreen:
    """A watcher that draws the study on a terminal while it is entered as a context."""

    def __init__(
        self,
        goal: Goal,
        console: Console,
        *,
        clock: Callable[[], float] = time.monotonic,
        others: Others = nobody,
    ) -> None:
        """Draw on ``console``; ``clock`` gives seconds, ``others`` what others have ended."""
        self.progress = StudyProgress(goal)
        self._console = console
        self._clock = clock
        self._others = others
        # The drawing thread must not see a trial half noted.
        self._lock = threading.Lock()
        self._stopping: str | None = None
        self._live = Live(self, console=console, refresh_per_second=REFRESHES, transient=True)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def started(self, number: int, *, slot: int, params: Mapping[str, Value], attempt: int) -> None:
        """Show that a trial was placed."""
        with self._lock:
            now = self._clock()
            self.progress.begin(now)
            self.progress.start(number, slot, params, attempt, now)

    def rung(
        self,
        number: int,
        *,
        progress: int,
        value: float,
        metrics: Mapping[str, float],
        train_loss: float | None,
        pruned: bool,
        faults: Sequence[str] = (),
    ) -> None:
        """Show a trial's numbers at a rung."""
        with self._lock:
            self.progress.reach(number, progress, value, metrics, train_loss, faults)

    def ended(
        self,
        number: int,
        *,
        reason: str,
        value: float | None,
        seconds: float,
        params: Mapping[str, Value],
        note: str,
        leads: bool,
        faults: Sequence[str] = (),
    ) -> None:
        """Show how a trial ended."""
        elsewhere = self._others(number)
        with self._lock:
            self.progress.begin(self._clock())
            for other in elsewhere:
                self.progress.end(other)
            self.progress.finish(number, reason, value, seconds, params, note, faults)

    def notice(self, text: str) -> None:
        """Print ``text`` above the screen, where it stays."""
        self._console.print(Text(f"{wall_clock()} {text}", style="dim"))

    def stopping(self, text: str) -> None:
        """Show ``text`` at the bottom from the next drawing on; safe in a signal handler."""
        self._stopping = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            now = self._clock()
            width = min(options.max_width, parts.WIDEST)
            screen = draw(self.progress, now, width, console.height, self._stopping)
        yield Constrain(screen, width)


def draw(
    progress: StudyProgress, now: float, width: int, height: int, stopping: str | None = None
) -> RenderableType:
    """Return the screen at the second ``now``, ``width`` columns wide and at most ``height`` high.

    Args:
        progress: the numbers.
        now: second of the clock that the numbers were noted by.
        width: columns.
        height: lines; the list of ended trials is cut to fit.
        stopping: what to say of a stop that is under way, in place of how to stop.
    """
    shown: list[RenderableType] = [
        parts.head(progress, now),
        "",
        parts.budget(progress, now, width),
    ]
    lines = 8
    if progress.best is not None:
        shown += ["", parts.labelled("best", parts.best_lines(progress, progress.best))]
        lines += 3
    running = sorted(progress.running.values(), key=lambda trial: (trial.slot, trial.number))
    # A slot may have several, which train as one: then a line each.
    whole = len(running) == 1 or lines + 4 * len(running) <= height
    for i, trial in enumerate(running):
        label = f"slot {trial.slot}" if len(running) > 1 else "now"
        if whole:
            told: RenderableType = parts.running_lines(progress.goal, trial, now, width)
        else:
            told = parts.running_line(trial, now, width)
        shown += [*([""] if whole or i == 0 else []), parts.labelled(label, told)]
    lines += 4 * len(running) if whole else len(running) + 1
    ended = progress.last_ended(max(0, min(MOST_ENDED, height - lines)))
    if ended:
        shown += ["", parts.labelled("ended", parts.ended_table(progress.goal, ended))]
    end = stopping or "Ctrl-C stops after a checkpoint; the same command goes on later."
    shown += ["", Text(end, style="bold" if stopping else "dim")]
    return Padding(Group(*shown), (1, 1))
