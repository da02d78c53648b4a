"""A stack of trials at work: they enter, are evaluated at rungs, and leave, each by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.stacking import stack_key, trains_models
from sft_tune.trial.data.resident import release
from sft_tune.trial.device import open_device, peak_memory, wait_for
from sft_tune.trial.loop import save
from sft_tune.trial.mirror import Mirror
from sft_tune.trial.outcome import Outcome
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.rungs import Ending, after_rung, at_rung
from sft_tune.trial.stack.common import Common
from sft_tune.trial.stack.endings import Endings
from sft_tune.trial.stack.member import Member, Report, Share, make_member
from sft_tune.trial.stack.room import least_bytes, most_of
from sft_tune.trial.stack.shared import NotStackableError, Shared
from sft_tune.trial.stack.together import Together
from sft_tune.trial.stack.whole import Whole

Name = TypeVar("Name", bound=Hashable)


class Stack(Generic[Name]):
    """Trials that train together. Whoever owns it calls `work` again and again."""

    def __init__(
        self,
        device: str,
        cache: Path,
        *,
        checkpoint_seconds: float,
        evaluation_batch_size: int,
        keep: int | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin without trials.

        Args:
            device: see `run_trial`, as of the next three.
            cache: of prepared data and features.
            checkpoint_seconds: between what a resume needs.
            evaluation_batch_size: of the validation split.
            keep: how many trials of a study keep their weights: of others none are written;
                None: every trial does.
            wake: called from another thread when `work` has something to return.
        """
        self._device = open_device(device)
        self._cache = cache
        self._checkpoint_seconds = checkpoint_seconds
        self._batch_size = evaluation_batch_size
        self._key: str | None = None
        self._shared: Shared | None = None
        self._members: dict[Name, Member] = {}
        self._together: Together | None = None
        self._endings: Endings[Name] = Endings(wake, keep)

    def __len__(self) -> int:
        """Return how many trials are in it: those that train, wait, or are being written."""
        return len(self._members) + len(self._endings)

    @property
    def trains(self) -> bool:
        """Whether `work` has anything to do but wait."""
        verdicts = (member.verdict is not None for member in self._members.values())
        return bool(self._training) or any(verdicts)

    @property
    def _training(self) -> list[Member]:
        return [] if self._together is None else self._together.members

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

        ``report`` is told of every rung; the trial trains on meanwhile, up to the next one, which
        is evaluated when `answer` has brought the verdict.

        Raises:
            NotStackableError: when it is to be trained alone.
            DataError, ModelError: as `run_trial`.
            RuntimeError, MemoryError: when memory runs out; the others can train on.
        """
        self._wait()
        key = stack_key(config)
        if key is None or (self._members and key != self._key):
            raise NotStackableError("its settings are not those of the stack")
        clock = Share()
        with clock.aside(self._device):
            if self._shared is None or key != self._key:
                self._shared, self._key = None, None
                self._shared = self._share(config)
                self._key = key
            trainee = self._shared.trainee(config)
            if self._members and not self._has_room(least_bytes(trainee.model.module)):
                raise MemoryError("the device has no room for it beside the others")
            member = make_member(trainee, paths, report, mirror, clock, kept_from)
            self._shared.join(trainee)
        self._arrange([*self._training, member])
        self._members[name] = member

    def _has_room(self, size: int) -> bool:
        """Tell whether a trial of ``size`` bytes fits in, perhaps in place of held data."""
        if most_of(self._device, size):
            return True
        return release(self._device) and bool(most_of(self._device, size))

    def _share(self, config: TrialConfig) -> Shared:
        if trains_models(config):
            return Whole(config, self._device, self._cache)
        return Common(config, self._device, self._cache, self._batch_size)

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
        self._endings.drop(name)

    def work(self) -> list[tuple[Name, Outcome | Exception]]:
        """Act on verdicts and wishes, and do one step of those that train.

        Returns:
            The trials that have ended; with the error those whose weights could not be written.

        Raises:
            RuntimeError, MemoryError: when memory runs out; no trial is lost by that, each can go
                on alone from its last checkpoint.
        """
        self._settle()
        if self._together is not None:
            self._step(self._together)
        return self._endings.done()

    def ended(self) -> list[tuple[Name, Outcome | Exception]]:
        """Return the trials that have ended and that `work` has not returned yet."""
        self._endings.wait()
        return self._endings.done()

    def _part(self, members: Sequence[Member]) -> None:
        gone = set(members)
        self._arrange([member for member in self._training if member not in gone])

    def _arrange(self, members: list[Member]) -> None:
        """Let ``members`` train, and no others. When this fails, those before do."""
        together = None
        if members and self._shared is not None:
            together = Together(members, self._shared, self._device)
        self._together = together

    def _settle(self) -> None:
        """Act on verdicts; save and end those that are to leave."""
        back: list[Member] = []
        for name, member in list(self._members.items()):
            if member.verdict is not None and member.pending is not None:
                self._wait()
                if self._judge(name, member) and self._passes(name, member):
                    back.append(member)
            if member.stopping and member.pending is None and name in self._members:
                self._wait()
                self._save(member, None)  # copied once, at the end
                step, horizon = member.state.step, member.state.horizon
                self._end(name, Ending("stopped", f"asked to, after step {step} of {horizon}"))
        back = [member for member in back if member in self._members.values()]
        if back:
            self._arrange([*self._training, *back])

    def _judge(self, name: Name, member: Member) -> bool:
        """Act on the verdict on the pending rung of ``member``; tell whether it goes on."""
        rung, go_on = member.pending, member.verdict is True
        member.pending = member.verdict = None
        if rung is None:
            return True
        state, trained = member.state, member.state.step
        state.step = rung.step or trained  # where it was judged; it has trained on meanwhile
        ending = after_rung(rung, member.trainee, state, go_on=go_on)
        if ending is not None:
            self._end(name, ending)
            return False
        state.step = trained
        if member.failed is not None:
            self._diverge(name, member, member.failed)
            return False
        # Not at a rung that it has reached and not told of: going on from there would pass it over.
        if self._is_due(member) and not member.held and not member.stopping:
            self._save(member, member.mirror)
        return True

    def _passes(self, name: Name, member: Member) -> bool:
        """Evaluate ``member`` at the rung it was held at; tell whether it is to train again."""
        if not member.held:
            stood, member.stands = member.stands, False
            return stood
        member.held = False
        if not self._rung(name, member):
            return False
        # One that is held at every rung would never be saved.
        member.stands = self._is_due(member)
        return not member.stands

    def _is_due(self, member: Member) -> bool:
        return time.monotonic() - member.saved_at >= self._checkpoint_seconds

    def _step(self, together: Together) -> None:
        """Do one step of all that train; see to those that reached a rung or diverged by it."""
        begin = time.perf_counter()
        losses, norms, ratios, sizes = together.step()
        faulty: list[tuple[Member, str]] = []
        reached: list[Member] = []
        for k, member in enumerate(together.members):
            state = member.state
            due = ratios is not None and member.updates.is_due(state.step)
            ratio = ratios[k] if due and ratios is not None else None
            member.monitors.add(losses[k], norms[k], sizes[k], ratio)
            state.step += 1
            state.samples += sizes[k]
            fault = member.fault(losses[k], norms[k])
            if fault is not None:
                faulty.append((member, fault))
            elif state.step in member.trainee.plan.rungs:
                reached.append(member)
        self._spend(begin)
        if faulty or reached:
            self._wait()
            self._stand(faulty, reached)

    def _wait(self) -> None:
        """Wait for what the device was given to do: that was for all that train."""
        begin = time.perf_counter()
        wait_for(self._device)
        self._spend(begin)

    def _spend(self, begin: float) -> None:
        """Let those that train share the seconds since ``begin``."""
        members = self._training
        for member in members:
            member.clock.spend((time.perf_counter() - begin) / len(members))

    def _stand(self, faulty: list[tuple[Member, str]], reached: list[Member]) -> None:
        """Part with those that diverged, and with those that do not get past their rung."""
        names = {member: name for name, member in self._members.items()}
        gone = []
        for member, fault in faulty:
            if member.pending is None:
                self._diverge(names[member], member, fault)
            else:  # it may have been pruned before that
                member.failed = fault
                gone.append(member)
        for member in reached:
            if member.pending is not None:
                member.held = True
                gone.append(member)
            else:
                self._rung(names[member], member)
        if gone:
            self._part(gone)

    def _diverge(self, name: Name, member: Member, fault: str) -> None:
        self._end(name, Ending("diverged", f"{fault} of {member.state.horizon}"))

    def _rung(self, name: Name, member: Member) -> bool:
        """Evaluate and report; tell whether the trial is still there."""
        shared = self._shared
        if shared is None:
            raise RuntimeError("the stack is empty")
        with member.clock.aside(self._device):
            member.row.store_weights()
        reached = at_rung(
            member.trainee,
            member.state,
            member.monitors,
            self._batch_size,
            outputs=shared.outputs(member, self._batch_size),
        )
        if isinstance(reached, Ending):
            self._end(name, reached)
            return False
        if member.state.step < member.state.horizon:
            member.pending = reached
            member.report(reached)
            return True
        # Whatever the verdict, it has completed.
        member.report(reached)
        ending = after_rung(reached, member.trainee, member.state, go_on=True)
        self._end(name, ending or Ending("completed"))
        return False

    def _save(self, member: Member, mirror: Mirror | None) -> None:
        member.row.store()
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(member.draw.get_state(), self._device)
        else:
            torch.set_rng_state(member.draw.get_state())
        save(member.paths, member.trainee, member.state, member.monitors, mirror)
        member.saved_at = time.monotonic()

    def _end(self, name: Name, ending: Ending) -> None:
        member = self._members.pop(name)
        # First: it has ended even where memory runs out as the others are put together anew.
        self._endings.add(name, member, ending, peak_memory(self._device))
        if member in self._training:
            self._part([member])
