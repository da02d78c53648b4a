"""The worker process: `python -m sft_tune.run.worker`, started by an engine, not by people.

It reads commands from standard input and writes events to standard output, one JSON object a
line. It imports no Optuna and no SQL. When its input ends, its runner is gone, and it goes too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import psutil

from sft_tune.errors import SftTuneError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.function_task import is_function

Message = dict[str, Any]

PULSE_SECONDS = 5.0


class Channel:
    """The two pipes to the runner: events out; commands, verdicts and the word to stop in."""

    def __init__(self) -> None:
        """Take over standard output: what libraries print goes to standard error from here on."""
        self._out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf8")
        os.dup2(2, 1)
        self.commands: queue.Queue[Message] = queue.Queue()
        self._verdicts: queue.Queue[bool] = queue.Queue()
        self._awaited = 0
        self._stop = threading.Event()
        self._spoke = time.monotonic()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, event: str, **content: Any) -> None:
        """Send ``event``."""
        self._spoke = time.monotonic()
        self._out.write(json.dumps({"event": event, **content}) + "\n")
        self._out.flush()

    def ask(self, event: str, **content: Any) -> bool:
        """Send ``event`` and wait for the runner's verdict on it."""
        self.settle()
        self.send(event, **content)
        return self._verdicts.get()

    def tell(self, event: str, **content: Any) -> bool:
        """Send ``event``; the verdict, which can only be to go on, is waited for in `settle`."""
        self._awaited += 1
        self.send(event, **content)
        return True

    def settle(self) -> None:
        """Wait until the runner has dealt with everything that it was told."""
        while self._awaited:
            self._verdicts.get()
            self._awaited -= 1

    def should_stop(self) -> bool:
        """Tell whether the runner wants the trial to be saved and left.

        Asked before each step, it is where the trial shows that it has not stalled.
        """
        if time.monotonic() - self._spoke > PULSE_SECONDS:
            self.send("pulse")
        return self._stop.is_set()

    def next_command(self) -> Message:
        """Wait for the next command."""
        return self.commands.get()

    def _listen(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if message["do"] == "verdict":
                self._verdicts.put(message["go_on"])
            elif message["do"] == "stop":
                self._stop.set()
            elif message["do"] == "quit":
                os._exit(0)  # nothing is in flight: the runner says so only to the idle
            else:
                # A stop that came before was for an earlier command; one that comes while this
                # process still warms up is for this one.
                self._stop.clear()
                self.commands.put(message)
        # The runner is gone. What the trial has not saved is lost, and found again from its last
        # checkpoint; to wait for the loop could write beside the next runner's worker.
        os._exit(0)


def main() -> None:
    """Serve commands until the runner goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel()
    warm_up()
    channel.send("ready", pid=os.getpid())
    handlers = {
        "probe": _probe,
        "train": _train,
        "measure": _measure,
        "soup": _soup,
        "export": _export,
        "verify": _verify,
    }
    while True:
        command = channel.next_command()
        try:
            handlers[command["do"]](channel, command)
        except Exception as error:  # the border: every failure becomes an event, none is lost
            kind = type(error).__name__ if isinstance(error, SftTuneError) else ""
            text = str(error) if kind else f"{type(error).__name__}: {error}"
            channel.send("error", kind=kind, message=text, traceback=traceback.format_exc())


def warm_up() -> None:
    """Import now what would else be imported, for seconds, on the clock of the first trial."""
    import torch

    for name in ("sklearn.metrics", "sft_tune.trial.loop"):
        importlib.import_module(name)
    # The first step of any optimizer imports more of torch.
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.SGD([parameter], lr=0.1).step()


def use_threads(count: int) -> None:
    """Do for a forked worker what OMP_NUM_THREADS does where a process starts with it.

    Libraries read the variable when they are loaded, which was in the server, with 1.
    """
    import numpy as np
    import torch

    torch.set_num_threads(count)
    if count > 1:
        from threadpoolctl import threadpool_limits

        threadpool_limits(count)
    np.random.seed()  # Python's generator seeds itself again after a fork, NumPy's does not


def _probe(channel: Channel, command: Message) -> None:
    from sft_tune.trial.check import probe
    from sft_tune.trial.function import load_function

    config = TrialConfig.model_validate(command["config"])
    if is_function(config.task):
        load_function(config.task)
        channel.send("probed", facts={"task": config.task})
        return
    facts = probe(
        config, command["batch_sizes"], device=command["device"], cache=Path(command["cache"])
    )
    channel.send("probed", facts=facts)


def _measure(channel: Channel, command: Message) -> None:
    from sft_tune.trial.throughput import throughput

    rate = throughput(
        TrialConfig.model_validate(command["config"]),
        device=command["device"],
        cache=Path(command["cache"]),
        threads=command["threads"],
        seconds=command["seconds"],
        armed=lambda: channel.ask("armed"),
    )
    channel.send("measured", rate=rate)


def _train(channel: Channel, command: Message) -> None:
    from sft_tune.trial.folds import run_folds
    from sft_tune.trial.function import run_function
    from sft_tune.trial.held_out import test_metrics
    from sft_tune.trial.loggers import Loggers
    from sft_tune.trial.loop import run_trial
    from sft_tune.trial.mirror import Mirror, open_mirror
    from sft_tune.trial.outcome import Evaluation, Outcome
    from sft_tune.trial.paths import TrialPaths

    _confine(command)
    paths = TrialPaths(Path(command["folder"])).create()
    mirror = open_mirror(command["url"], paths)
    config = TrialConfig.model_validate(command["config"])
    paths.config.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf8")

    loggers = Loggers(command["loggers"], config, paths.root)
    # These keep their own record of what was reported, behind which they go on.
    waits = command["prunable"] or is_function(config.task) or config.is_folded

    def report(evaluation: Evaluation) -> bool:
        say = channel.ask if waits else channel.tell
        go_on = say("evaluation", **asdict(evaluation))
        loggers.rung(evaluation)
        return go_on

    def train(
        config: TrialConfig,
        paths: TrialPaths,
        report: Callable[[Evaluation], bool],
        mirror: Mirror | None,
    ) -> Outcome:
        return run_trial(
            config,
            paths,
            device=command["device"],
            cache=Path(command["cache"]),
            report=report,
            should_stop=channel.should_stop,
            checkpoint_seconds=command["checkpoint_seconds"],
            evaluation_batch_size=command["evaluation_batch_size"],
            mirror=mirror,
            refit_to=command["refit_to"],
            feature_cache=command["feature_cache"],
            settle=channel.settle,
        )

    with _errors_to(paths.log), loggers.closed_on_error():
        if is_function(config.task):
            outcome = run_function(
                config,
                paths,
                device=command["device"],
                report=report,
                should_stop=channel.should_stop,
            )
        elif config.is_folded:
            outcome = run_folds(config, paths, train, report, mirror)
            if "folds" in outcome.flags:  # from here on the one whose weights are kept
                config = config.of_fold(outcome.flags["folds"]["kept"])
        else:
            outcome = train(config, paths, report, mirror)
        notes = [note for note in (outcome.note, *loggers.close(outcome.reason)) if note]
        held_out = None
        has_test = command["with_test"] and not is_function(config.task)
        if has_test and outcome.reason == "completed":
            held_out = test_metrics(
                config,
                paths.best,
                device=command["device"],
                cache=Path(command["cache"]),
                batch_size=command["evaluation_batch_size"],
            )
    outcome = replace(outcome, note="; ".join(notes))
    if mirror is not None:
        mirror.close(ended=outcome.reason != "stopped")
    kept = _kept_bytes(command["device"])
    channel.send("outcome", **asdict(outcome), test_metrics=held_out, kept_bytes=kept)


def _soup(channel: Channel, command: Message) -> None:
    from sft_tune.trial.export.soup import Candidate, cook

    candidates = [
        Candidate(
            one["number"], _fetched(one["path"], command), TrialConfig.model_validate(one["config"])
        )
        for one in command["candidates"]
    ]
    cooked = cook(
        candidates,
        Path(command["target"]),
        device=command["device"],
        cache=Path(command["cache"]),
        batch_size=command["batch_size"],
    )
    channel.send("cooked", **cooked)


def _fetched(place: str, command: Message) -> Path:
    """Return the checkpoint at ``place``, a path or a URL, on this machine."""
    from sft_tune.spec.paths import is_url
    from sft_tune.trial.load import fetch_checkpoint

    return fetch_checkpoint(place, Path(command["cache"])) if is_url(place) else Path(place)


def _export(channel: Channel, command: Message) -> None:
    from sft_tune.trial.export.write import export

    facts = export(
        TrialConfig.model_validate(command["config"]),
        _fetched(command["best"], command),
        Path(command["folder"]),
        reference=Path(command["reference"]),
        onnx=command["onnx"],
        device=command["device"],
        cache=Path(command["cache"]),
    )
    channel.send("exported", facts=facts)


def _verify(channel: Channel, command: Message) -> None:
    from sft_tune.trial.export.verify import verify

    found = verify(
        TrialConfig.model_validate(command["config"]),
        Path(command["folder"]),
        reference=Path(command["reference"]),
        call=command["call"],
        onnx=command["onnx"],
        device=command["device"],
        cache=Path(command["cache"]),
        batch_size=command["batch_size"],
    )
    channel.send("verified", found=found)


def _confine(command: Message) -> None:
    """Keep the trial to its share: the slot may be another one than the process was made for."""
    import torch

    torch.set_num_threads(command["threads"])
    if command["memory_share"] is not None and command["memory_share"] < 1:
        # Else one trial's cached blocks are its neighbour's out-of-memory.
        torch.cuda.set_per_process_memory_fraction(command["memory_share"])


def _kept_bytes(device: str) -> int:
    """Return what this process still holds of its device after a trial, in bytes."""
    import gc

    import torch

    gc.collect()
    if device == "cpu":
        return psutil.Process().memory_info().rss
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)


@contextlib.contextmanager
def _errors_to(log: Path) -> Iterator[None]:
    """Append what the process prints, C libraries included, to ``log`` while the block runs."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    try:
        yield
    except Exception:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.dup2(before, 1)
        os.close(before)


if __name__ == "__main__":
    main()
