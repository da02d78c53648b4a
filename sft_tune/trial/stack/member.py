"""A trial in a stack: what it has come to, and the seconds of the device that are its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sft_tune.trial import resume
from sft_tune.trial.loop import create
from sft_tune.trial.mirror import Mirror
from sft_tune.trial.monitors import CHANCE, FACTOR, WINDOW, Clock, Monitors
from sft_tune.trial.outcome import Evaluation
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.resume import TrialState
from sft_tune.trial.stack.rows import Row
from sft_tune.trial.trainee import Trainee
from sft_tune.trial.updates import UpdateRatio

Report = Callable[[Evaluation], None]


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
        clock: of its share of the device.
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
        pending: the rung whose verdict is not there yet.
        verdict: of that rung, when it is there.
        held: whether it is at its next rung already, and waits for that verdict.
        stands: whether it waits at the pending rung, to be saved there.
        stopping: whether it is to be saved and left.
        failed: how it diverged while the verdict on a rung before was on its way.
        watched: steps for which the monitors are asked for an explosion of the loss.
    """

    trainee: Trainee
    state: TrialState
    clock: Share
    monitors: Monitors
    paths: TrialPaths
    mirror: Mirror | None
    report: Report
    kept_from: float | None
    row: Row
    draw: torch.Generator
    rates: list[float]
    updates: UpdateRatio
    saved_at: float = field(default_factory=time.monotonic)
    pending: Evaluation | None = None
    verdict: bool | None = None
    held: bool = False
    stands: bool = False
    stopping: bool = False
    failed: str | None = None
    watched: int = 0

    def fault(self, loss: Tensor | float, norm: Tensor | float) -> str | None:
        """Return what is wrong with the numbers of the step that was just done; None: nothing.

        The monitors are asked only where something can be: the mean of a window of losses is over
        `FACTOR` times `CHANCE` only while one of them is. Of numbers that are on a device they
        know when it is time to look.
        """
        at_rung = self.state.step in self.trainee.plan.rungs
        if isinstance(loss, Tensor) or isinstance(norm, Tensor):
            return self.monitors.fault(self.state.step, at_rung=at_rung)
        if not loss <= FACTOR * CHANCE:
            self.watched = WINDOW
        if self.watched > 0 or at_rung or not math.isfinite(norm):
            self.watched -= 1
            return self.monitors.fault(self.state.step, at_rung=True)
        return None


def make_member(
    trainee: Trainee,
    paths: TrialPaths,
    report: Report,
    mirror: Mirror | None,
    clock: Share,
    kept_from: float | None,
) -> Member:
    """Return the member of ``trainee``, at its beginning or at its last checkpoint.

    Raises:
        TrialError: when its folder cannot be made.
        StorageError: when what ``mirror`` has cannot be read.
    """
    create(paths)
    device = trainee.device
    state = TrialState(clock=clock)
    state.training, state.cached_features = trainee.portion, bool(trainee.features)
    state.horizon = trainee.plan.horizon
    monitors = Monitors(device, norms_may_overflow=False)
    if mirror is not None:
        state.notes += mirror.fetch()
    resume.restore(paths, trainee, state, monitors)
    named = dict(trainee.model.module.named_parameters())
    draw = torch.Generator(device)
    if device.type == "cuda":
        draw.set_state(torch.cuda.get_rng_state(device))
    else:
        draw.set_state(torch.get_rng_state())
    return Member(
        trainee=trainee,
        state=state,
        clock=clock,
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
    )
