"""A study that runs, told in plain lines, for logs and pipes: a line an event, but for rungs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TextIO

from sft_tune.spec.space import Value
from sft_tune.view import words
from sft_tune.view.progress import Goal, Others, StudyProgress, nobody

RUNG_SECONDS = 10.0
"""Of a trial at work a line is written once in so many seconds, however quick its rungs are."""


def wall_clock() -> str:
    """Return the local time of day: ``14:05:12``."""
    return datetime.now().strftime("%H:%M:%S")


class PlainLines:
    """A watcher that writes lines to ``file``, each at once on its way."""

    def __init__(
        self,
        goal: Goal,
        file: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        stamp: Callable[[], str] = wall_clock,
        others: Others = nobody,
        prefix: str = "",
        rungs: bool = True,
    ) -> None:
        """Write to ``file``.

        Args:
            goal: what the study is after.
            file: where to.
            clock: gives seconds.
            stamp: gives what each line begins with.
            others: gives the trials that other runners have ended.
            prefix: comes after the stamp.
            rungs: whether trials at work are told of too.
        """
        self.progress = StudyProgress(goal)
        self._file = file
        self._clock = clock
        self._stamp = stamp
        self._others = others
        self._prefix = prefix
        self._rungs = rungs
        self._continued_after = 0
        self._last_line: dict[int, float] = {}
        self._told: set[str] = set()

    def header(self) -> None:
        """Say which study this is and where it is kept; how far it has come, once it goes on."""
        goal = self.progress.goal
        aim = "maximize" if goal.maximize else "minimize"
        self._write(f"study {goal.study}: {aim} {goal.metric} on validation, in {goal.storage}")
        self._continued_after = self.progress.done

    def started(self, number: int, *, slot: int, params: Mapping[str, Value], attempt: int) -> None:
        """Write that a trial was placed."""
        self._say_continued()
        now = self._clock()
        self._last_line[number] = now
        self.progress.begin(now)
        self.progress.start(number, slot, params, attempt, now)
        begun = f"taken up again (attempt {attempt})" if attempt > 1 else "started"
        self._write(f"trial {number} {begun}: {words.settings(params) or 'the defaults'}")

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
        """Write a trial's numbers at a rung, unless a line of it was written a moment ago.

        That it is pruned there comes with its end.
        """
        self.progress.reach(number, progress, value, metrics, train_loss, faults)
        now = self._clock()
        if not self._rungs or now - self._last_line.get(number, -math.inf) < RUNG_SECONDS:
            return
        self._last_line[number] = now
        metric = self.progress.goal.metric
        told = {metric: value, **metrics, "train loss": train_loss}
        numbers = [f"{name} {words.score(v)}" for name, v in told.items() if v is not None]
        wrong = f"; {', '.join(faults)}" if faults else ""
        self._write(f"trial {number} at {progress} %: {', '.join(numbers)}{wrong}")

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
        """Write how a trial ended, and what of the budget is left."""
        self._say_continued()
        self.progress.begin(self._clock())
        for other in self._others(number):
            self.progress.end(other)
        ran_here = number in self.progress.running
        past = self.progress.finish(number, reason, value, seconds, params, note, faults)
        goal = self.progress.goal
        text = f"trial {number} {words.REASONS.get(reason, reason)}"
        if reason not in words.GOOD and ran_here:
            text += f" at {past.progress} %"
        if value is not None:
            # Where it was cut it may have been worse than it once was.
            how = " with" if reason in words.GOOD else ", its best"
            text += f"{how} {goal.metric} {words.score(value)}"
        text += f" in {words.duration(seconds)}" if seconds else ""
        text += ", the best so far" if leads else ""
        # That it was pruned, and where, is said already.
        said = [note] if note and reason != "pruned" else []
        if reason == "completed":  # then a note says how, mostly the same of every trial
            said = [text for text in said if text not in self._told]
            self._told.add(note)
        said += [fault for fault in faults if fault.split(" since ")[0] != reason]
        text += f": {'; '.join(said)}" if said else ""
        self._write(f"{text} ({self._left()})")

    def notice(self, text: str) -> None:
        """Write ``text``."""
        self._write(text)

    def stopping(self, text: str) -> None:
        """Write ``text`` past all buffers: a signal may have come while one was being written."""
        os.write(2, f"{self._stamp()} {text}\n".encode())

    def _say_continued(self) -> None:
        if self._continued_after:
            self._write(f"continued after {words.plural(self._continued_after, 'trial')}")
            self._continued_after = 0

    def _left(self) -> str:
        trials = self.progress.goal.trials
        if not trials:
            return f"{self.progress.done} done"
        left = self.progress.time_left(self._clock())
        about = f", about {words.duration(left)} left" if left else ""
        return f"{self.progress.done} of {trials}{about}"

    def _write(self, text: str) -> None:
        self._file.write(f"{self._stamp()} {self._prefix}{text}\n")
        self._file.flush()
