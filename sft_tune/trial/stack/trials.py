"""A stack of trials at work: they enter, are evaluated at rungs, and leave, each by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.stacking import stack_key
from sft_tune.trial import resume
from sft_tune.trial.device import autocast, open_device, peak_memory
from sft_tune.trial.loop import create, outcome_of, save
from sft_tune.trial.mirror import Mirror
from sft_tune.trial.monitors import Clock, Monitors
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.resume import TrialState
from sft_tune.trial.rungs import Ending, after_rung, at_rung
from sft_tune.trial.stack.common import Common, NotStackableError, masks_of
from sft_tune.trial.stack.head import forward
from sft_tune.trial.stack.rows import Row, Rows
from sft_tune.trial.step import Trainee
from sft_tune.trial.updates import UpdateRatio

Report = Callable[[Evaluation], None]
Name = TypeVar("Name", bound=Hashable)


class Share(Clock):
    """Seconds of a device that several trials use at once: each has its share of a step."""

    def __init__(self) -> None:
        """Stand still until time is `spend`."""
        super().__init__()
        self._spent = 0.0

    def spend(self, seconds: float) -> None:
        """Count ``seconds`` of the device."""
        self._spent += seconds

    def attempt(self) -> float:
        """Return the seconds of this attempt."""
        return self._spent

    @contextmanager
    def aside(self, device: torch.device) -> Iterator[None]:
        """Count what happens inside, which is for this trial alone, as no training."""
        begin = time.perf_counter()
        with super().aside(device):
            yield
        self._spent += time.perf_counter() - begin


@dataclass(eq=False)
class Member:
    """A trial in a stack.

    Attributes:
        trainee: as it would be alone.
        state: what it has come to.
        monitors: of its steps since the last rung.
        paths: its folder.
        mirror: copies what must outlive this machine.
        report: sends a rung away.
        kept_from: see `run_trial`.
        row: its weights while it trains.
        draw: its random numbers, which dropout is drawn from.
        rates: learning rates by step.
        updates: at which steps the update is measured.
        saved_at: when it was last saved, by the monotonic clock.
        waiting: the rung whose verdict is not there yet; None: it trains.
        verdict: of that rung, when it is there.
        stopping: whether it is to be saved and left.
    """

    trainee: Trainee
    state: TrialState
    monitors: Monitors
    paths: TrialPaths
    mirror: Mirror | None
    report: Report
    kept_from: float | None
    row: Row
    draw: torch.Generator
    rates: list[float]
    updates: UpdateRatio
    saved_at: float
    waiting: Evaluation | None = None
    verdict: bool | None = None
    stopping: bool = False


@dataclass
class _Active:
    """The members that train, and what is made of them once until one enters or leaves."""

    members: list[Member] = field(default_factory=list)
    rows: Rows | None = None
    masks: Callable[[list[int]], Callable[[int, Tensor], Tensor]] | None = None
    smoothing: Tensor | None = None


class Stack(Generic[Name]):
    """Trials that train together. Whoever owns it calls `work` again and again."""

    def __init__(
        self, device: str, cache: Path, *, checkpoint_seconds: float, evaluation_batch_size: int
    ) -> None:
        """Begin without trials (arguments: see `run_trial`)."""
        self._device = open_device(device)
        self._cache = cache
        self._checkpoint_seconds = checkpoint_seconds
        self._batch_size = evaluation_batch_size
        self._key: str | None = None
        self._common: Common | None = None
        self._members: dict[Name, Member] = {}
        self._active = _Active()

    def __len__(self) -> int:
        """Return how many trials are in it, those that wait for a verdict included."""
        return len(self._members)

    @property
    def trains(self) -> bool:
        """Whether `work` has anything to do but wait."""
        ready = (m for m in self._members.values() if m.waiting is None or m.verdict is not None)
        return any(True for _ in ready)

    def enter(
        self,
        name: Name,
        config: TrialConfig,
        paths: TrialPaths,
        report: Report,
        mirror: Mirror | None = None,
        kept_from: float | None = None,
    ) -> None:
        """Take in the trial ``name``, at its beginning or at its last checkpoint.

        ``report`` is told of every rung; the trial trains on when `answer` has brought the verdict.

        Raises:
            NotStackableError: when it is to be trained alone.
            DataError, ModelError: as `run_trial`.
        """
        key = stack_key(config)
        if key is None or (self._members and key != self._key):
            raise NotStackableError("its settings are not those of the stack")
        clock = Share()
        with clock.aside(self._device):
            if self._common is None or key != self._key:
                self._common, self._key = None, None
                self._common = Common(config, self._device, self._cache, self._batch_size)
                self._key = key
            trainee = self._common.trainee(config)
            member = self._member(trainee, paths, report, mirror, clock, kept_from)
        self._members[name] = member
        self._join([member])

    def answer(self, name: Name, go_on: bool) -> None:
        """Bring the verdict on the rung that ``name`` has reported."""
        if name in self._members:
            self._members[name].verdict = go_on

    def stop(self, name: Name) -> None:
        """Have ``name`` saved and left, to go on another time."""
        if name in self._members:
            self._members[name].stopping = True

    def drop(self, name: Name) -> None:
        """Forget ``name`` as it is: another runner has it."""
        member = self._members.pop(name, None)
        if member is not None:
            self._part([member])

    def work(self) -> list[tuple[Name, Outcome]]:
        """Act on verdicts and wishes, and do one step of those that train.

        Returns:
            The trials that have ended.

        Raises:
            RuntimeError, MemoryError: when memory runs out; no trial is lost by that, each can go
                on alone from its last checkpoint.
        """
        ended = [*self._settle()]
        if self._active.members:
            ended += self._step()
        for name, _ in ended:
            del self._members[name]
        return ended

    def _member(
        self,
        trainee: Trainee,
        paths: TrialPaths,
        report: Report,
        mirror: Mirror | None,
        clock: Clock,
        kept_from: float | None,
    ) -> Member:
        create(paths)
        state = TrialState(clock=clock)
        state.training, state.cached_features = trainee.portion, True
        state.horizon = trainee.plan.horizon
        monitors = Monitors(self._device, norms_may_overflow=False)
        if mirror is not None:
            state.notes += mirror.fetch()
        resume.restore(paths, trainee, state, monitors)
        named = dict(trainee.model.module.named_parameters())
        draw = torch.Generator(self._device)
        if self._device.type == "cuda":
            draw.set_state(torch.cuda.get_rng_state(self._device))
        else:
            draw.set_state(torch.get_rng_state())
        return Member(
            trainee=trainee,
            state=state,
            monitors=monitors,
            paths=paths,
            mirror=mirror,
            report=report,
            kept_from=kept_from,
            row=Row(
                {name: part for name, part in named.items() if part.requires_grad},
                trainee.optimizer,
                trainee.config.training,
            ),
            draw=draw,
            rates=[trainee.learning_rate(step) for step in range(state.horizon)],
            updates=UpdateRatio(state.horizon, trainee.plan.rungs),
            saved_at=time.monotonic(),
        )

    def _join(self, members: Sequence[Member]) -> None:
        self._arrange([*self._active.members, *members])

    def _part(self, members: Sequence[Member]) -> None:
        gone = set(members)
        self._arrange([member for member in self._active.members if member not in gone])

    def _arrange(self, members: list[Member]) -> None:
        """Let ``members`` train, and no others."""
        if self._active.rows is not None:
            self._active.rows.leave()
        self._active = _Active(members)
        if not members or self._common is None:
            return
        smoothing = [member.trainee.config.training.label_smoothing for member in members]
        self._active.rows = Rows([member.row for member in members])
        self._active.masks = masks_of(
            [member.trainee.model for member in members],
            self._common.layers,
            [member.draw for member in members],
        )
        self._active.smoothing = torch.tensor(smoothing, device=self._device)[:, None]

    def _settle(self) -> Iterator[tuple[Name, Outcome]]:
        """Let those train again whose verdict has come; save and end those that are to leave."""
        back: list[Member] = []
        for name, member in list(self._members.items()):
            ending = None
            if member.waiting is not None and member.verdict is not None:
                rung, member.waiting = member.waiting, None
                ending = after_rung(rung, member.trainee, member.state, go_on=member.verdict)
                member.verdict = None
                due = time.monotonic() - member.saved_at >= self._checkpoint_seconds
                if ending is None and due and not member.stopping:
                    self._save(member, member.mirror)
                if ending is None:
                    back.append(member)
            if member.stopping and member.waiting is None and ending is None:
                if member in back:
                    back.remove(member)
                else:
                    self._part([member])
                self._save(member, None)  # copied once, at the end
                step, horizon = member.state.step, member.state.horizon
                ending = Ending("stopped", f"asked to, after step {step} of {horizon}")
            if ending is not None:
                yield name, self._end(member, ending)
        if back:
            self._join(back)

    def _step(self) -> list[tuple[Name, Outcome]]:
        """Do one step of all that train; see to those that reached a rung or diverged by it."""
        begin = time.perf_counter()
        active = self._active
        losses, norms, ratios, sizes = self._train(active)
        share = (time.perf_counter() - begin) / len(active.members)
        leaving: dict[Member, Ending | None] = {}
        for k, member in enumerate(active.members):
            state = member.state
            state.clock.spend(share)  # type: ignore[attr-defined]
            due = ratios is not None and member.updates.is_due(state.step)
            ratio = ratios[k] if due and ratios is not None else None
            member.monitors.add(losses[k], norms[k], sizes[k], ratio)
            state.step += 1
            state.samples += sizes[k]
            at_one = state.step in member.trainee.plan.rungs
            fault = member.monitors.fault(state.step, at_rung=True)
            if fault is not None:
                leaving[member] = Ending("diverged", f"{fault} of {state.horizon}")
            elif at_one:
                leaving[member] = None
        if not leaving:
            return []
        self._part(list(leaving))
        names = {member: name for name, member in self._members.items()}
        ended = []
        for member, ending in leaving.items():
            ending = ending or self._rung(member)
            if ending is not None:
                ended.append((names[member], self._end(member, ending)))
        return ended

    def _train(
        self, active: _Active
    ) -> tuple[list[float], list[float], list[float] | None, list[int]]:
        """Do one optimizer step; return losses, gradient norms, update ratios, batch sizes."""
        common, rows, masks, smoothing = self._common, active.rows, active.masks, active.smoothing
        if common is None or rows is None or masks is None or smoothing is None:
            raise RuntimeError("the stack is empty")
        members = active.members
        measured = any(member.updates.is_due(member.state.step) for member in members)
        before = rows.weights.clone() if measured else None
        places = [m.trainee.plan.indices(m.state.step) for m in members]
        sizes = [len(place) for place in places]
        indices = torch.nn.utils.rnn.pad_sequence(places, batch_first=True).to(self._device)
        with autocast(self._device, members[0].trainee.dtype):
            logits = forward(common.layers, rows.parameters, common.inputs[indices], masks(sizes))
        likely = functional.log_softmax(logits.float(), dim=2)
        hit = likely.gather(2, common.targets[indices][:, :, None])[:, :, 0]
        each = -(1 - smoothing) * hit - smoothing * likely.mean(dim=2)
        counts = torch.tensor(sizes, device=self._device)[:, None]
        if min(sizes) < indices.shape[1]:
            each = each * (torch.arange(indices.shape[1], device=self._device) < counts)
        losses = (each / counts).sum(dim=1)
        rates = [member.rates[member.state.step] for member in members]
        norms = rows.step(losses.sum(), torch.tensor(rates, device=self._device))
        found, lengths = torch.stack([losses.detach(), norms]).tolist()
        if before is None:
            return found, lengths, None, sizes
        tiny = torch.finfo(torch.float32).tiny
        ratios = (rows.weights - before).norm(dim=1) / before.norm(dim=1).clamp_min(tiny)
        return found, lengths, ratios.tolist(), sizes

    def _rung(self, member: Member) -> Ending | None:
        """Evaluate and report; return how the trial has ended by that, if it has."""
        with member.state.clock.aside(self._device):
            member.row.store()
        reached = at_rung(member.trainee, member.state, member.monitors, self._batch_size)
        if isinstance(reached, Ending):
            return reached
        member.waiting = reached
        member.report(reached)
        return None

    def _save(self, member: Member, mirror: Mirror | None) -> None:
        member.row.store()
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(member.draw.get_state(), self._device)
        else:
            torch.set_rng_state(member.draw.get_state())
        save(member.paths, member.trainee, member.state, member.monitors, mirror)
        member.saved_at = time.monotonic()

    def _end(self, member: Member, ending: Ending) -> Outcome:
        return outcome_of(
            member.paths,
            member.trainee.config,
            member.state,
            ending,
            peak_memory(self._device),
            member.mirror,
            member.kept_from,
        )
