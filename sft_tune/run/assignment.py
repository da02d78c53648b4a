"""A trial as its worker has it: its folder, its trackers, what it says to the runner. No torch."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_tune.errors import SftTuneError, StorageError
from sft_tune.run.channel import Channel, DroppedError, Message
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.function_task import is_function
from sft_tune.trial.held_out import test_metrics
from sft_tune.trial.loggers import Loggers
from sft_tune.trial.mirror import Mirror, open_mirror
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths

if TYPE_CHECKING:
    from sft_tune.trial.verdict import Verdict

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
REMEDY = "free space, then start again"


class Assignment:
    """The command to train a trial, carried out."""

    def __init__(self, channel: Channel, command: Message) -> None:
        """Make the folder of the trial, and note there what it is."""
        self.command = command
        self.lane: int | None = command.get("lane")
        self.paths = TrialPaths(Path(command["folder"])).create()
        self.mirror = open_mirror(command["url"], self.paths)
        self.config = TrialConfig.model_validate(command["config"])
        text = self.config.model_dump_json(indent=2)
        self.paths.config.write_text(text + "\n", encoding="utf8")
        self.loggers = Loggers(command["loggers"], self.config, self.paths.root)
        self._channel = channel
        self._waited = 0.0
        self.unanswered = 0
        """Rungs that were sent to a stack's runner and have no verdict yet."""

    def report(self, evaluation: Evaluation) -> bool:
        """Send a rung, and wait for the verdict on it."""
        self.send(evaluation)
        return self.wait()

    def tell(self, evaluation: Evaluation) -> Verdict:
        """Send a rung, and return where the verdict on it will be."""
        self.send(evaluation)
        return self

    def poll(self) -> bool | None:
        """Return the verdict on the rung that was sent; None while it is not there."""
        return self._channel.verdict(self.lane)

    def wait(self) -> bool:
        """Return the verdict on the rung that was sent, when it is there."""
        begun = time.monotonic()
        go_on = self._channel.awaited(self.lane)
        self._waited += time.monotonic() - begun
        return go_on

    def send(self, evaluation: Evaluation) -> None:
        """Send a rung, without waiting."""
        self.unanswered += 1
        self._channel.send("evaluation", lane=self.lane, **asdict(evaluation))
        self.loggers.rung(evaluation)

    def should_stop(self) -> bool:
        """Tell whether the trial is to be saved and left.

        Raises:
            DroppedError: it is to be left unsaved.
        """
        if self._channel.is_dropped(self.lane):
            raise DroppedError
        return self._channel.should_stop(self.lane)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Append what the process prints, C libraries included, to the trial's log."""
        log = self.paths.log
        log.parent.mkdir(parents=True, exist_ok=True)
        before = os.dup(2)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(file.fileno(), 1)
        try:
            yield
        except Exception:
            with contextlib.suppress(OSError):  # the log may be what the disk has no room for
                traceback.print_exc()
            raise
        finally:
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os.dup2(before, 2)
            os.dup2(before, 1)
            os.close(before)

    def finish(self, outcome: Outcome, weights_of: TrialConfig, kept: Callable[[], int]) -> None:
        """Evaluate on the test split where that is asked for, and send how the trial ended.

        Args:
            outcome: how it ended.
            weights_of: the configuration whose weights it has kept.
            kept: tells what the process still holds of the device, in bytes.
        """
        notes = [note for note in (outcome.note, *self.loggers.close(outcome.reason)) if note]
        held_out = None
        has_test = self.command["with_test"] and not is_function(weights_of.task)
        if has_test and outcome.reason == "completed":
            held_out = test_metrics(
                weights_of,
                self.paths.best,
                device=self.command["device"],
                cache=Path(self.command["cache"]),
                batch_size=self.command["evaluation_batch_size"],
            )
        outcome = replace(outcome, note="; ".join(notes))
        if self.mirror is not None:
            self.mirror.close(ended=outcome.reason != "stopped")
        self._channel.send(
            "outcome",
            lane=self.lane,
            **asdict(outcome),
            test_metrics=held_out,
            kept_bytes=kept(),
            waited=self._waited,
        )


def describe(error: Exception) -> dict[str, Any]:
    """Return what the runner is told of ``error``."""
    kind = type(error).__name__ if isinstance(error, SftTuneError) else ""
    text = str(error) if kind else f"{type(error).__name__}: {error}"
    if _has_no_room(error):
        kind = StorageError.__name__
        text = f"{' '.join(text.split())}; no trial is lost"
        if REMEDY not in text:  # what raises it may have said so
            text = f"{text}; {REMEDY}"
    trace = "".join(traceback.format_exception(error))
    return {"kind": kind, "message": text, "traceback": trace}


def _has_no_room(error: BaseException | None) -> bool:
    """Tell whether ``error`` comes of a disk that takes no more: it is not the trial's fault."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def train_alone(channel: Channel, command: Message) -> None:
    """Train one trial, and nothing else meanwhile."""
    from sft_tune.trial.device import confine, kept_bytes
    from sft_tune.trial.folds import run_folds
    from sft_tune.trial.function import run_function
    from sft_tune.trial.loop import run_trial

    device = command["device"]
    confine(command["threads"], command["memory_share"])
    trial = Assignment(channel, command)
    config = trial.config

    def train(
        config: TrialConfig,
        paths: TrialPaths,
        report: Callable[[Evaluation], bool | Verdict],
        mirror: Mirror | None,
    ) -> Outcome:
        return run_trial(
            config,
            paths,
            device=device,
            cache=Path(command["cache"]),
            report=report,
            should_stop=trial.should_stop,
            checkpoint_seconds=command["checkpoint_seconds"],
            evaluation_batch_size=command["evaluation_batch_size"],
            mirror=mirror,
            refit_to=command["refit_to"],
            feature_cache=command["feature_cache"],
            compiled=command["compile"],
            # Of folds one is kept, whose value is not the trial's.
            kept_from=None if trial.config.is_folded else command["kept_from"],
        )

    with trial.errors(), trial.loggers.closed_on_error():
        if is_function(config.task):
            outcome = run_function(
                config,
                trial.paths,
                device=device,
                report=trial.report,
                should_stop=trial.should_stop,
                checkpoint_seconds=command["checkpoint_seconds"],
                mirror=trial.mirror,
            )
        elif config.is_folded:
            outcome = run_folds(config, trial.paths, train, trial.report, trial.mirror)
            if "folds" in outcome.flags:  # from here on the one whose weights are kept
                config = config.of_fold(outcome.flags["folds"]["kept"])
        else:
            outcome = train(config, trial.paths, trial.tell, trial.mirror)
        # What a process with lanes holds is not this trial's alone.
        trial.finish(outcome, config, lambda: kept_bytes(device) if trial.lane is None else 0)
