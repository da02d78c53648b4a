"""The dispatcher: asks, places, collects, tells. It never imports torch."""

from __future__ import annotations

import contextlib
import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence

from sft_tune.errors import (
    DataError,
    MissingFunctionError,
    MissingModelError,
    SftTuneError,
    StorageError,
    TrialError,
)
from sft_tune.run import messages
from sft_tune.run.crew import Crew, Running
from sft_tune.run.desk import Desk, Roster
from sft_tune.run.engine import GONE, Engine, Inbox, Worker
from sft_tune.run.events import Notice, RungReached, TrialStarted
from sft_tune.run.messages import Message
from sft_tune.run.owner import LEASE_SECONDS
from sft_tune.run.placement import Placement
from sft_tune.run.slots import Slot
from sft_tune.store.claims import LeaseLostError

BEAT_SECONDS = LEASE_SECONDS / 4
WISH_SECONDS = 2.0
MOST_AT_ONCE = 64
"""Messages that are taken together; then it is time to look at clocks again."""
# Errors of a worker that say nothing of its trial, which is given back.
NOT_ITS_FAULT = {
    kind.__name__: kind
    for kind in (DataError, MissingFunctionError, MissingModelError, StorageError)
}


class Dispatcher:
    """Serves the studies of a roster on slots until they are over or it is stopped."""

    def __init__(
        self,
        roster: Roster,
        engine: Engine,
        slots: Sequence[Slot],
        inbox: Inbox,
        idle: Sequence[Worker] = (),
        grace_seconds: float = 25.0,
    ) -> None:
        """Take ``roster`` for the studies, ``engine`` for processes, ``idle`` workers of it."""
        self._roster = roster
        self._crew = Crew(engine, slots, inbox, idle)
        self._inbox = inbox
        self._grace_seconds = grace_seconds
        self._stopping = False
        self._abort_at = float("inf")
        self._next_beat = 0.0
        self._next_wishes = 0.0

    @property
    def workers(self) -> list[Worker]:
        """The worker processes at this moment."""
        return self._crew.workers

    def stop(self) -> None:
        """End in order: each trial saves a checkpoint and is given back. For signal handlers."""
        self._stopping = True
        self._inbox.put((None, {"event": "wake"}))

    def terminate(self) -> None:
        """End in order, but at once after the time of grace: for SIGTERM, before preemption."""
        self._abort_at = min(self._abort_at, time.monotonic() + self._grace_seconds)
        self.stop()

    def abort(self) -> None:
        """End at once: workers are killed, trials go on later from their last checkpoint."""
        self._abort_at = 0.0
        self.stop()

    def run(self) -> str:
        """Run until done; return why it ended: the roster's word, stopped or aborted.

        Raises:
            SftTuneError: what the roster raised when a study could not go on.
        """
        try:
            return self._serve()
        finally:
            self._crew.close()

    def _serve(self) -> str:
        while time.monotonic() < self._abort_at:
            self._beat_when_due()
            self._look_at_wishes_when_due()
            if not self._stopping:
                self._fill_slots()
            if not self._crew.busy:
                why = "stopped" if self._stopping else self._roster.over()
                if why is not None:
                    return why
            self._wait()
        return "aborted"

    def _wait(self) -> None:
        """Handle what has been said meanwhile, or return when something else is due."""
        due = min(self._next_beat, self._next_wishes, self._abort_at)
        said: list[tuple[Worker | None, Message]] = []
        with contextlib.suppress(queue.Empty):
            said.append(self._inbox.get(timeout=max(0.0, due - time.monotonic())))
            while len(said) < MOST_AT_ONCE:
                said.append(self._inbox.get(timeout=0))
        # A worker says nothing of a trial before the rungs of that trial.
        self._rungs([(w, message) for w, message in said if message["event"] == "evaluation"])
        for worker, message in said:
            if worker is None:  # a signal's
                self._next_wishes = 0.0
            elif message["event"] != "evaluation":
                try:
                    self._handle(worker, self._crew.busy.get(worker), message)
                except LeaseLostError:
                    self._let_go(worker)

    def _fill_slots(self) -> None:
        while self._crew.has_room:
            running = Counter(run.desk for run in self._crew.busy.values())
            for desk in self._roster.desks(running):
                placement = self._next(desk)
                if placement is not None:
                    break
            else:
                return
            self._start(self._crew.take(), desk, placement)

    def _next(self, desk: Desk) -> Placement | None:
        try:
            return desk.next()
        except LeaseLostError:
            return None
        except SftTuneError as error:
            self._roster.broken(desk, error)
            return None

    def _start(self, worker: Worker, desk: Desk, placement: Placement) -> None:
        try:
            placement = desk.ledger.begin(placement, worker.slot.label)
        except LeaseLostError:
            self._crew.rest(worker)
            return
        self._crew.start(worker, desk, placement)
        desk.notify(
            TrialStarted(
                number=placement.number,
                slot=worker.slot.index,
                params=placement.params,
                attempt=placement.attempt,
            )
        )

    def _handle(self, worker: Worker, running: Running | None, message: Message) -> None:
        event = message["event"]
        if event == GONE:
            self._lose(worker, "crashed", f"the worker {message['how']}\n{message['said']}")
            return
        if running is None:
            return  # "ready", or the last words of a trial that was taken from this worker
        running.heard = time.monotonic()
        if event == "outcome":
            self._finish(worker, running, message)
        elif event == "error":
            self._failed(worker, running, message)

    def _rungs(self, said: Sequence[tuple[Worker | None, Message]]) -> None:
        """Record the rungs that were reached meanwhile, those of a study at once."""
        by_desk: dict[Desk, list[tuple[Worker, Running, Message]]] = {}
        for worker, evaluation in said:
            running = None if worker is None else self._crew.busy.get(worker)
            if worker is not None and running is not None:
                running.heard = time.monotonic()
                by_desk.setdefault(running.desk, []).append((worker, running, evaluation))
        for desk, reached in by_desk.items():
            found = desk.ledger.rungs([(run.placement, rung) for _, run, rung in reached])
            for (worker, running, evaluation), verdict in zip(reached, found, strict=True):
                if isinstance(verdict, LeaseLostError):
                    self._let_go(worker)
                else:
                    worker.send(messages.verdict(verdict))
                    self._tell_rung(worker, running, evaluation, pruned=not verdict)

    def _tell_rung(
        self, worker: Worker, running: Running, evaluation: Message, *, pruned: bool
    ) -> None:
        desk = running.desk
        if evaluation["unsaved"]:
            desk.notify(Notice(f"trial {running.placement.number}: {evaluation['unsaved']}"))
        desk.notify(
            RungReached(
                number=running.placement.number,
                slot=worker.slot.index,
                progress=evaluation["progress"],
                value=evaluation["metrics"][desk.spec.objective.metric],
                metrics=evaluation["metrics"],
                train_loss=evaluation["train_loss"],
                pruned=pruned,
                faults=desk.ledger.faults(running.placement),
            )
        )

    def _finish(self, worker: Worker, running: Running, outcome: Message) -> None:
        self._crew.free(worker, outcome.get("kept_bytes", 0), running.desk.notify)
        if outcome["reason"] == "stopped":
            self._in_desk(running.desk, running.desk.left, running.placement, outcome, worker)
        else:
            self._in_desk(running.desk, running.desk.end, running.placement, outcome, worker)
        if running.desk.target_reached:
            self._next_wishes = 0.0  # those that run are to end

    def _failed(self, worker: Worker, running: Running, message: Message) -> None:
        """End a trial whose training raised; what is not there is not the trial's fault."""
        self._crew.free(worker, 0, running.desk.notify)
        desk, placement = running.desk, running.placement
        if message["kind"] in NOT_ITS_FAULT:
            desk.ledger.give_back(placement)
            self._roster.broken(desk, NOT_ITS_FAULT[message["kind"]](message["message"]))
            return
        desk.ledger.add_error(placement, message["traceback"])
        outcome = {"reason": "crashed", "note": _one_line(message), "seconds": 0.0}
        self._in_desk(desk, desk.end, placement, outcome, worker)

    def _in_desk(
        self,
        desk: Desk,
        record: Callable[[Placement, Message, int], None],
        placement: Placement,
        outcome: Message,
        worker: Worker,
    ) -> None:
        """Record how a trial ended; a study that cannot go on by that is the roster's affair."""
        try:
            record(placement, outcome, worker.slot.index)
        except LeaseLostError:
            desk.notify(_taken_over(placement))
        except TrialError as error:
            self._roster.broken(desk, error)

    def _lose(self, worker: Worker, reason: str, error: str) -> None:
        """Start the trial of a worker that died again, unless it has had its attempts."""
        running = self._crew.lose(worker)
        if running is None:
            return
        desk, placement = running.desk, running.placement
        note = error.splitlines()[0]
        desk.ledger.add_error(placement, error.rstrip())
        most = desk.spec.resources.max_attempts
        if self._stopping or desk.wants_end(placement):
            outcome = {"steps": 0, "seconds": 0.0, "note": note}
            self._in_desk(desk, desk.left, placement, outcome, worker)
        elif not desk.ledger.spent(placement, most):
            again = f"attempt {placement.attempt + 1} begins"
            desk.notify(Notice(f"trial {placement.number}: {note}; {again}"))
            self._start(self._crew.spawn(worker.slot), desk, placement)
        else:
            outcome = {"reason": reason, "note": note, "seconds": 0.0}
            self._in_desk(desk, desk.end, placement, outcome, worker)

    def _beat_when_due(self) -> None:
        """Renew the leases; let go of a trial whose lease another runner has taken."""
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + BEAT_SECONDS
        self._roster.beat([slot.label for slot in self._crew.slots if slot.lane < 2])
        held: dict[Desk, set[int]] = {}
        for worker, running in list(self._crew.busy.items()):
            if running.desk not in held:
                held[running.desk] = running.desk.ledger.heartbeat()
            if running.placement.claim.id not in held[running.desk]:
                self._let_go(worker)

    def _look_at_wishes_when_due(self) -> None:
        """Act on what people want from other shells, and on workers that say nothing."""
        now = time.monotonic()
        if now < self._next_wishes:
            return
        self._next_wishes = now + WISH_SECONDS
        self._roster.refresh(busy=bool(self._crew.busy))
        for desk in {running.desk for running in self._crew.busy.values()}:
            desk.refresh()
        for worker, running in list(self._crew.busy.items()):
            wanted = self._stopping or running.desk.wants_end(running.placement)
            if wanted and not running.leaving:
                running.leaving = True
                worker.send(messages.STOP)
            minutes = running.desk.spec.resources.stall_minutes
            if now - running.heard > 60 * minutes:
                worker.kill()
                self._lose(worker, "stalled", f"it reported nothing for {minutes:g} minutes")

    def _let_go(self, worker: Worker) -> None:
        """Leave a trial to the runner that took it over (this one slept, or its clock jumped)."""
        running = self._crew.drop(worker)
        if running is not None:
            running.desk.notify(_taken_over(running.placement))


def _one_line(message: Message) -> str:
    """Return what a worker's error says in a line; a library's may go on for a hundred.

    The whole is kept with the trial.
    """
    lines: list[str] = message["message"].strip().splitlines() or ["no message"]
    return " ".join(line.strip() for line in lines) if message["kind"] else lines[0].rstrip(": ")


def _taken_over(placement: Placement) -> Notice:
    return Notice(f"trial {placement.number} was taken over by another runner")
