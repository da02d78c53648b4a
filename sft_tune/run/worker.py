"""The worker process: `python -m sft_tune.run.worker`, started by an engine, not by people.

It reads commands from standard input and writes events to standard output, one JSON object a
line. It imports no Optuna and no SQL. When its input ends, its runner is gone, and it goes too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from sft_tune.run.channel import Channel, Message
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.function_task import is_function
from sft_tune.trial.shared import shared_at


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
        "measure_stack": _measure_stack,
        "soup": _soup,
        "export": _export,
        "verify": _verify,
    }
    while True:
        command = channel.next_command()
        with _told(channel, command.get("lane")), shared_at(command.get("prepared")):
            handlers[command["do"]](channel, command)


@contextlib.contextmanager
def _told(channel: Channel, lane: int | None) -> Iterator[None]:
    """Send what fails inside as an event: this is the border, and none is lost."""
    try:
        yield
    except Exception as error:
        from sft_tune.run.assignment import describe

        channel.send("error", lane=lane, **describe(error))


def warm_up() -> None:
    """Import now what would else be imported, for seconds, on the clock of the first trial."""
    import torch

    importlib.import_module("sft_tune.trial.loop")
    # The first step of any optimizer imports more of torch.
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.SGD([parameter], lr=0.1).step()


def keep_cuda_usable() -> None:
    """Start over as a process that is not forked where a forked one could not use a GPU.

    That is so where the server has imported something that asks CUDA whether it is there. Input,
    output and errors stay as they are, and so does the process's number.
    """
    import torch

    if torch.cuda._is_in_bad_fork():
        command = [sys.executable, "-m", "sft_tune.run.worker"]
        os.execve(sys.executable, command, os.environ)


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
    from sft_tune.trial.device import confine
    from sft_tune.trial.function import load_function

    config = TrialConfig.model_validate(command["config"])
    if is_function(config.task):
        load_function(config.task)
        channel.send("probed", facts={"task": config.task})
        return
    confine(command["threads"], command["memory_share"])
    facts = probe(
        config,
        command["batch_sizes"],
        device=command["device"],
        cache=Path(command["cache"]),
        evaluation_batch_size=command["evaluation_batch_size"],
        feature_cache=command["feature_cache"],
        batch_tokens=command["batch_tokens"],
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
        feature_cache=command["feature_cache"],
        evaluation_batch_size=command["evaluation_batch_size"],
    )
    channel.send("measured", rate=rate)


def _measure_stack(channel: Channel, command: Message) -> None:
    from sft_tune.trial.device import confine
    from sft_tune.trial.stack.gain import measure

    confine(command["threads"], None)
    gain = measure(
        TrialConfig.model_validate(command["config"]),
        command["batch_sizes"],
        trials=command["trials"],
        device=command["device"],
        cache=Path(command["cache"]),
        batch_size=command["evaluation_batch_size"],
    )
    channel.send("measured", gain=gain.ratio, most=gain.most)


def _train(channel: Channel, command: Message) -> None:
    from sft_tune.run.assignment import train_alone
    from sft_tune.run.worker_stack import train_stacked

    if not command["stack"]:
        train_alone(channel, command)
        return
    for left in train_stacked(channel, command):
        if channel.is_dropped(left.get("lane")):
            continue
        with _told(channel, left.get("lane")):
            train_alone(channel, left)


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


if __name__ == "__main__":
    main()
