"""The dispatcher: asks, places, collects, tells. It never imports torch."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import replace

from sft_tune.errors import TrialError
from sft_tune.run import messages
from sft_tune.run.engine import GONE, Engine, Inbox, Worker
from sft_tune.run.events import Notice, Notify, RungReached, TrialEnded, TrialStarted
from sft_tune.run.ledger import LEASE_SECONDS, Ledger, Placement
from sft_tune.run.messages import Message
from sft_tune.run.slots import Slot
from sft_tune.spec.study import StudySpec
from sft_tune.store.claims import LeaseLostError

FAILURES = ("crashed", "stalled", "out_of_memory")
BEAT_SECONDS = LEASE_SECONDS / 4


class Dispatcher:
    """Runs one study on the slots of this machine until its budget is used or it is stopped."""

    def __init__(
        self,
        spec: StudySpec,
        ledger: Ledger,
        engine: Engine,
        slots: Sequence[Slot],
        inbox: Inbox,
        notify: Notify,
        idle: Sequence[Worker] = (),
    ) -> None:
        """Take ``ledger`` for the database, ``engine`` for processes, ``idle`` workers of it."""
        self._spec = spec
        self._ledger = ledger
        self._engine = engine
        self._slots = slots
        self._inbox = inbox
        self._notify = notify
        self._idle = list(idle)
        self._busy: dict[Worker, Placement] = {}
        self.placed = 0
        self._failures: list[str] = []
        self._stopping = False
        self._aborting = False
        self._next_beat = 0.0

    @property
    def workers(self) -> list[Worker]:
        """The worker processes at this moment."""
        return [*self._busy, *self._idle]

    def stop(self) -> None:
        """End in order: each trial saves a checkpoint and is given back. For signal handlers."""
        self._stopping = True
        self._inbox.put((None, {"event": "wake"}))

    def abort(self) -> None:
        """End at once: workers are killed, trials go on later from their last checkpoint."""
        self._stopping = self._aborting = True
        self._inbox.put((None, {"event": "wake"}))

    def run(self) -> str:
        """Run until done; return why it ended: trials, hours, target, stopped or aborted.

        Raises:
            TrialError: after as many failures in a row as the budget admits.
        """
        self._ledger.recover()
        try:
            why = self._serve()
        finally:
            for worker, placement in self._busy.items():
                worker.kill()
                self._ledger.give_back(placement)
            for worker in self._idle:
                worker.close()
        self._ledger.close(None if self._stopping else why)
        return why

    def _serve(self) -> str:
        told_to_stop = False
        while not self._aborting:
            self._beat_when_due()
            if not self._stopping:
                self._fill_slots()
            elif not told_to_stop:
                told_to_stop = True
                for worker in self._busy:
                    worker.send(messages.STOP)
            if not self._busy:
                return "stopped" if self._stopping else self._ledger.exhausted() or "trials"
            try:
                patience = max(0.0, self._next_beat - time.monotonic())
                worker_or_none, message = self._inbox.get(timeout=patience)
            except queue.Empty:
                continue
            if worker_or_none is None:
                continue
            try:
                self._handle(worker_or_none, message)
            except LeaseLostError:
                self._let_go(worker_or_none)
        return "aborted"

    def _fill_slots(self) -> None:
        while len(self._busy) < len(self._slots):
            placement = self._ledger.next_placement()
            if placement is None:
                return
            self.placed += 1
            repeated = self._ledger.repeated(placement)
            if repeated is not None:
                self._notify(repeated)
                continue
            if self._idle:
                worker = self._idle.pop()
            else:
                taken = {worker.slot for worker in self._busy}
                slot = next(slot for slot in self._slots if slot not in taken)
                worker = self._engine.spawn(slot, self._inbox)
            self._start(worker, placement)

    def _start(self, worker: Worker, placement: Placement) -> None:
        placement = self._ledger.begin(placement, worker.slot.label)
        self._busy[worker] = placement
        worker.send(
            messages.train(
                placement.local_config, placement.folder, worker.slot.device, self._spec.resources
            )
        )
        self._notify(
            TrialStarted(
                number=placement.number,
                slot=worker.slot.index,
                params=placement.point.params,
                attempt=placement.attempt,
            )
        )

    def _handle(self, worker: Worker, message: Message) -> None:
        event = message["event"]
        placement = self._busy.get(worker)
        if event == GONE:
            self._lose(worker, f"the worker {message['how']}\n{message['said']}".rstrip())
        elif placement is None:
            return  # "ready", or the last words of a trial that was taken from this worker
        elif event == "evaluation":
            self._rung(worker, placement, message)
        elif event == "outcome":
            self._finish(worker, placement, message)
        elif event == "error":
            self._ledger.add_error(placement, message["traceback"])
            outcome = {"reason": "crashed", "note": message["message"], "seconds": 0.0}
            self._finish(worker, placement, outcome)

    def _rung(self, worker: Worker, placement: Placement, evaluation: Message) -> None:
        go_on = self._ledger.rung(placement, evaluation)
        worker.send(messages.verdict(go_on))
        self._notify(
            RungReached(
                number=placement.number,
                slot=worker.slot.index,
                progress=evaluation["progress"],
                value=evaluation["metrics"][self._spec.objective.metric],
                metrics=evaluation["metrics"],
                train_loss=evaluation["train_loss"],
                pruned=not go_on,
            )
        )

    def _finish(self, worker: Worker, placement: Placement, outcome: Message) -> None:
        del self._busy[worker]
        self._idle.append(worker)
        if outcome["reason"] == "stopped":
            self._ledger.give_back(placement)
            self._notify(Notice(f"trial {placement.number} saved at step {outcome['steps']}"))
        else:
            self._ended(self._ledger.end(placement, outcome), worker.slot.index)

    def _lose(self, worker: Worker, error: str) -> None:
        """Start the trial of a worker that died again, unless it has had its attempts."""
        if worker in self._idle:
            self._idle.remove(worker)
        placement = self._busy.pop(worker, None)
        if placement is None:
            return
        self._ledger.add_error(placement, error)
        most = self._spec.resources.max_attempts
        if placement.attempt < most and not self._stopping:
            self._notify(
                Notice(
                    f"trial {placement.number}: {error.splitlines()[0]}; "
                    f"attempt {placement.attempt + 1} of {most} begins"
                )
            )
            self._start(self._engine.spawn(worker.slot, self._inbox), placement)
        elif self._stopping:
            self._ledger.give_back(placement)
        else:
            outcome = {"reason": "crashed", "note": error.splitlines()[0], "seconds": 0.0}
            self._ended(self._ledger.end(placement, outcome), worker.slot.index)

    def _ended(self, ended: TrialEnded, slot: int) -> None:
        self._notify(replace(ended, slot=slot))
        if ended.reason not in FAILURES:
            self._failures.clear()
            return
        self._failures.append(f"trial {ended.number} {ended.reason}: {ended.note}")
        if len(self._failures) >= self._spec.budget.failures:
            raise TrialError(
                f"{len(self._failures)} trials in a row failed (budget.failures); the last: "
                f"{self._failures[-1]}; `sft-tune show {self._spec.name} {ended.number}` has the "
                "whole error; start again when it is mended"
            )

    def _beat_when_due(self) -> None:
        """Renew the leases; let go of a trial whose lease another runner has taken."""
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + BEAT_SECONDS
        held = self._ledger.heartbeat()
        for worker, placement in list(self._busy.items()):
            if placement.claim.id not in held:
                self._let_go(worker)

    def _let_go(self, worker: Worker) -> None:
        """Leave a trial to the runner that took it over (this one slept, or its clock jumped)."""
        if worker in self._idle:
            self._idle.remove(worker)
        placement = self._busy.pop(worker, None)
        worker.kill()
        if placement is not None:
            self._notify(Notice(f"trial {placement.number} was taken over by another runner"))
