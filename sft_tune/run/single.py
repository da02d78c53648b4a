"""One worker, one command: probe a configuration, or train one without a search."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sft_tune import errors
from sft_tune.errors import TrialError, WorkerError
from sft_tune.run import messages
from sft_tune.run.engine import GONE, Inbox, LocalEngine, Worker
from sft_tune.run.messages import Message
from sft_tune.run.slots import find_slots
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.resources import ResourcesSpec


def probe_config(
    worker: Worker,
    inbox: Inbox,
    config: TrialConfig,
    resources: ResourcesSpec,
    batch_sizes: Sequence[int],
    batch_tokens: Sequence[int] = (),
) -> dict[str, Any]:
    """Let ``worker`` load data and model and take a step per batch size and token budget.

    Returns:
        The facts.

    Raises:
        DataError, ModelError: when the data or the model is not what the study file says.
        WorkerError: when the worker dies of it.
    """
    worker.send(messages.probe(config, batch_sizes, batch_tokens, worker.slot, resources))
    facts: dict[str, Any] = await_event(inbox, "probed")["facts"]
    return facts


def train_one(
    config: TrialConfig,
    folder: Path,
    resources: ResourcesSpec,
    on_rung: Callable[[Message], None],
    on_worker: Callable[[Worker], None] = lambda worker: None,
) -> Message:
    """Train ``config`` in ``folder`` (from its checkpoint there, if any); return the outcome.

    Args:
        config: the complete configuration.
        folder: where checkpoints and the log go.
        resources: of the study file; the first slot is used.
        on_rung: called with each evaluation.
        on_worker: called with the worker, so that a signal handler may tell it to stop.

    Raises:
        TrialError: when the training fails.
        WorkerError: when the worker dies.
    """
    inbox: Inbox = queue.SimpleQueue()
    worker = LocalEngine(folder).spawn(find_slots(resources)[0], inbox)
    on_worker(worker)
    try:
        worker.send(messages.train(config, folder, worker.slot, resources))

        def rung(evaluation: Message) -> None:
            worker.send(messages.verdict(True))
            on_rung(evaluation)

        return await_event(inbox, "outcome", rung)
    finally:
        worker.close()


def await_event(
    inbox: Inbox, wanted: str, on_rung: Callable[[Message], None] = lambda evaluation: None
) -> Message:
    """Return the next event ``wanted`` of the one worker of ``inbox``.

    Raises:
        SftTuneError: of whatever kind the worker raised.
        WorkerError: when it dies.
    """
    while True:
        _, message = inbox.get()
        event = message["event"]
        if event == wanted:
            return message
        if event == "evaluation":
            on_rung(message)
        elif event == "error":
            kind = getattr(errors, message["kind"] or "TrialError", TrialError)
            raise kind(message["message"])
        elif event == GONE:
            raise WorkerError(f"the worker {message['how']}; it said:\n{message['said']}")
