"""What went wrong with a trial, read off its rungs: numbers in, faults with their evidence out.

Every threshold stands here, with where it comes from. They are set to be quiet: a curve that
learns, flattens and wobbles a little has no fault, and a trial of fewer than `FEWEST` rungs has
only those that one rung can show.

========================  ======================================================================
diverging                 the loss is not finite, or two rungs long the training loss has lost
                          more than `LOST` of all that it had gained
exploding gradients       a gradient norm of `BURST` times the largest median of any rung so far,
                          or medians that grow to `GROWTH` times the first while the loss rises
                          (Pascanu et al. 2013, "On the difficulty of training RNNs")
vanishing gradients       two rungs long a median norm of `FADED` of the trial's largest (or below
                          `DEAD`), although the training loss has hardly fallen: near zero loss
                          small gradients are sound
overfitting               the validation loss is `OVERFIT` above its lowest (generalization loss,
                          Prechelt 1998, "Early stopping: but when?") and out of its noise, two
                          rungs long, while the training loss fell on; where the objective still
                          gains, only at `OVERCONFIDENT` (Guo et al. 2017: after the accuracy has
                          settled, the loss of a network goes on to rise)
underfitting              more than `STILL_FALLING` of all that training and validation loss fell,
                          they fell in the last third, without a gap; or they hardly fell, and
                          steps moved the weights by less than `SMALL_UPDATE` (1e-3 is usual:
                          Karpathy, CS231n, "Ratio of weights:updates")
plateau                   over the last `STUCK_FOR` of the rungs nothing gained, and the training
                          loss has not fallen by `STUCK` since the first
noisy validation          the objective jumps from rung to rung by more than `NOISY` of its
                          value (twice that for a loss) and `NOISY_SHARE` of the range it covers
edge of stability         the training loss rose twice by more than `JUMP` of its first value and
                          came down again, at updates above `LARGE_UPDATE` (Cohen et al. 2021,
                          "Gradient descent typically occurs at the edge of stability")
========================  ======================================================================
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from sft_tune.spec.faults import Fault, Rung

FEWEST = 5
FEWEST_OF_NOISE = 8
"""So many rungs say how much the objective jumps; of fewer, two lucky ones would."""
LOST = 0.5
BURST = 50.0
GROWTH = 10.0
FADED = 1e-3
DEAD = 1e-7
HARDLY = 0.1
"""A training loss that fell by less than this share of its first value has hardly fallen."""
OVERFIT = 0.10
OVERCONFIDENT = 0.5
OUT_OF_NOISE = 3.0
"""Deviations of one rung. Of 1,000 made-up curves of 5 to 20 rungs, with noise of a tenth of the
loss, fewer than 1 % rise so far by chance where they fell and settled, 2 to 6 % where they are flat
(while the training loss falls: no sound run either); 10 of 12 fine-tunes on wrong labels do."""
STILL_FALLING = 0.2
SMALL_UPDATE = 1e-5
STUCK_FOR = 0.6
STUCK = 0.03
GAIN = 0.005
"""A gain of less than this share of a number is none."""
NOISY = 0.03
NOISY_SHARE = 0.2
JUMP = 0.05
LARGE_UPDATE = 3e-3


def find_faults(
    rungs: Sequence[Rung], *, maximize: bool, reason: str | None = None, note: str = ""
) -> list[Fault]:
    """Return what is wrong with a trial, the gravest first.

    Args:
        rungs: in the order of their progress.
        maximize: whether more of the objective is better.
        reason: why it ended; None while it runs.
        note: the evidence for ``reason``.
    """
    found: list[Fault] = []
    if reason == "diverged":
        since = rungs[-1].progress if rungs else None
        found.append(Fault("diverging", since, note or "it ended as diverged"))
        if "gradient" in note:
            found.append(Fault("exploding_gradients", since, note))
    curve = _Curve(rungs, maximize=maximize, whole=bool(rungs) and rungs[-1].progress >= 100)
    for rule in _RULES:
        for fault in rule(curve):
            if fault.name not in {other.name for other in found}:
                found.append(fault)
    if any(fault.name == "diverging" for fault in found):
        # The others are its shadows.
        kept = ("diverging", "exploding_gradients")
        found = [fault for fault in found if fault.name in kept]
    return found


class _Curve:
    """Rungs as series; a series that lacks a number anywhere is empty."""

    def __init__(self, rungs: Sequence[Rung], *, maximize: bool, whole: bool) -> None:
        self.progress = [rung.progress for rung in rungs]
        self.values = _series([rung.value for rung in rungs])
        self.train = _series([rung.train_loss for rung in rungs])
        self.validation = _series([rung.validation_loss for rung in rungs])
        self.norms = _series([rung.gradient_norm for rung in rungs])
        self.largest = _series([rung.gradient_norm_max for rung in rungs])
        self.ratios = [r.update_ratio for r in rungs if r.update_ratio is not None]
        self.maximize = maximize
        self.whole = whole
        self.long = len(rungs) >= FEWEST

    def hardly_fell(self, at: int = -1) -> bool:
        """Tell whether the training loss at a rung is about what it was at the first."""
        return bool(self.train) and self.train[at] > (1 - HARDLY) * self.train[0] > 0

    def gains(self, later: float, earlier: float) -> bool:
        """Tell whether ``later`` is a better objective than ``earlier``, by more than nothing."""
        gain = later - earlier if self.maximize else earlier - later
        return gain > GAIN * abs(earlier)


def _series(numbers: Sequence[float | None]) -> list[float]:
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    return known if len(known) == len(numbers) else []


def _noise(series: Sequence[float]) -> float:
    """Return the deviation of ``series`` from smooth: by its second differences, robustly.

    For independent noise a second difference has the variance 1 + 4 + 1 = 6 times the noise's.
    """
    if len(series) < 3:
        return 0.0
    bends = [abs(a - 2 * b + c) for a, b, c in zip(series, series[1:], series[2:], strict=False)]
    return 1.4826 * statistics.median(bends) / math.sqrt(6)


def _diverging(curve: _Curve) -> Iterator[Fault]:
    train = curve.train
    if len(train) < 3:
        return
    low = min(range(len(train)), key=train.__getitem__)
    gained = max(train[0] - train[low], 0.5 * abs(train[0]))
    lost = [loss - train[low] for loss in train[-2:]]
    if low < len(train) - 2 and min(lost) > LOST * gained:
        yield Fault(
            "diverging",
            curve.progress[low],
            f"training loss rose from {train[low]:.3g} at {curve.progress[low]} % to "
            f"{train[-1]:.3g} at {curve.progress[-1]} %",
        )


def _exploding(curve: _Curve) -> Iterator[Fault]:
    norms, train = curve.norms, curve.train
    for at, (median, largest) in enumerate(zip(norms, curve.largest, strict=False)):
        usual = max(norms[: at + 1])
        if usual > 0 and largest > BURST * usual:
            yield Fault(
                "exploding_gradients",
                curve.progress[at],
                f"a gradient norm of {largest:.3g} before {curve.progress[at]} %, where the "
                f"median is {median:.3g}",
            )
            return
    if len(norms) >= 3 and train and norms[0] > 0:
        if min(norms[-2:]) > GROWTH * norms[0] and train[-1] > train[0]:
            yield Fault(
                "exploding_gradients",
                curve.progress[-2],
                f"median gradient norm {norms[0]:.3g} at {curve.progress[0]} %, {norms[-1]:.3g} "
                f"at {curve.progress[-1]} %, and the training loss rose",
            )


def _vanishing(curve: _Curve) -> Iterator[Fault]:
    norms = curve.norms
    if not curve.train:
        return
    for at in range(1, len(norms)):
        limit = max(FADED * max(norms[: at + 1]), DEAD)
        if max(norms[at - 1 : at + 1]) < limit and curve.hardly_fell(at):
            yield Fault(
                "vanishing_gradients",
                curve.progress[at - 1],
                f"median gradient norm {norms[at]:.3g} at {curve.progress[at]} %, "
                f"{norms[0]:.3g} at first, while the training loss is still {curve.train[at]:.3g}",
            )
            return


def _overfitting(curve: _Curve) -> Iterator[Fault]:
    losses, train = curve.validation, curve.train
    if not curve.long or not losses or not train or min(losses) <= 0:
        return
    low = min(range(len(losses)), key=losses.__getitem__)
    if low > len(losses) - 3:
        return
    floor = losses[low]
    rise = min(losses[-2:]) / floor - 1
    # Means, as the loss of an overfitted network jumps from rung to rung.
    lately = statistics.fmean(losses[low + 1 :][-max(3, len(losses) // 3) :])
    lowest = statistics.fmean(sorted(losses)[: max(2, len(losses) // 4)])
    out_of_noise = lately - lowest > OUT_OF_NOISE * _noise(losses)
    fell_on = train[-1] < 0.95 * train[low] and train[-1] < losses[-1]
    still_gains = bool(curve.values) and curve.gains(
        max(curve.values[-2:]) if curve.maximize else min(curve.values[-2:]), curve.values[low]
    )
    if rise > (OVERCONFIDENT if still_gains else OVERFIT) and out_of_noise and fell_on:
        yield Fault(
            "overfitting",
            curve.progress[low],
            f"validation loss rose from {floor:.3g} at {curve.progress[low]} % to "
            f"{losses[-1]:.3g} at {curve.progress[-1]} %, while the training loss fell from "
            f"{train[low]:.3g} to {train[-1]:.3g}",
        )


def _underfitting(curve: _Curve) -> Iterator[Fault]:
    losses, train = curve.validation, curve.train
    if not curve.whole or not curve.long or not train:
        return
    third = -1 - max(2, len(train) // 3)
    if losses and losses[-1] == min(losses) and losses[third] > 0:
        fell = 1 - losses[-1] / losses[third]
        # Of both: a single lucky rung is no slope.
        share = min(_share_of_fall(losses, third), _share_of_fall(train, third))
        if fell > HARDLY and share > STILL_FALLING and train[-1] > 0.9 * losses[-1]:
            yield Fault(
                "underfitting",
                None,
                f"validation loss still fell by {fell:.0%} from {curve.progress[third]} % to the "
                f"end, and the training loss ({train[-1]:.3g}) is not below it",
            )
            return
    if curve.ratios and curve.hardly_fell() and statistics.median(curve.ratios) < SMALL_UPDATE:
        yield Fault(
            "underfitting",
            None,
            f"training loss {train[0]:.3g} at first and {train[-1]:.3g} at the end: a step moves "
            f"the weights by {statistics.median(curve.ratios):.1g} of their norm, 1e-03 is usual",
        )


def _share_of_fall(series: Sequence[float], since: int) -> float:
    """Return how much of all that ``series`` fell it fell from the place ``since`` on."""
    whole = series[0] - series[-1]
    return (series[since] - series[-1]) / whole if whole > 0 else 0.0


def _plateau(curve: _Curve) -> Iterator[Fault]:
    count = len(curve.progress)
    start = count - math.ceil(STUCK_FOR * count)
    if not curve.long or start < 1 or not curve.values or not curve.train:
        return
    if min(curve.train) < (1 - STUCK) * curve.train[0]:
        return
    if curve.validation and min(curve.validation) < (1 - HARDLY) * curve.validation[0]:
        return
    best = max if curve.maximize else min
    stuck = not curve.gains(best(curve.values[start:]), best(curve.values[:start]))
    low = min(curve.train[:start])
    if stuck and min(curve.train[start:]) > low - GAIN * abs(low):
        yield Fault(
            "plateau",
            curve.progress[start - 1],
            f"no gain since {curve.progress[start - 1]} %: training loss {low:.3g} then and "
            f"{curve.train[-1]:.3g} at {curve.progress[-1]} %",
        )


def _noisy(curve: _Curve) -> Iterator[Fault]:
    values = curve.values
    if len(values) < FEWEST_OF_NOISE:
        return
    noise = _noise(values)
    level, covered = abs(statistics.median(values)), max(values) - min(values)
    if noise > (NOISY if curve.maximize else 2 * NOISY) * level and noise > NOISY_SHARE * covered:
        yield Fault(
            "noisy_validation",
            None,
            f"the objective jumps by about {noise:.2g} from rung to rung, around {level:.3g}",
        )


def _edge(curve: _Curve) -> Iterator[Fault]:
    train = curve.train
    if not curve.long or not train or not curve.ratios or train[0] <= 0:
        return
    jumps = [
        at
        for at in range(1, len(train))
        if train[at] - train[at - 1] > JUMP * train[0] and min(train[at:]) < train[at]
    ]
    ratio = max(curve.ratios)
    if len(jumps) >= 2 and ratio > LARGE_UPDATE:
        places = ", ".join(f"{curve.progress[at]} %" for at in jumps)
        yield Fault(
            "edge_of_stability",
            curve.progress[jumps[0]],
            f"training loss jumped up at {places} and came down again; a step moves the weights "
            f"by up to {ratio:.1g} of their norm",
        )


_RULES: tuple[Callable[[_Curve], Iterator[Fault]], ...] = (
    _diverging,
    _exploding,
    _vanishing,
    _overfitting,
    _underfitting,
    _plateau,
    _edge,
    _noisy,
)
