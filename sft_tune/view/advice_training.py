"""Rules on how long the best trials trained: too short, or so long that they overfit."""

from __future__ import annotations

from collections.abc import Iterator

from sft_tune.spec.faults import from_flags
from sft_tune.spec.features import WITHOUT, features_forgone
from sft_tune.spec.function_task import is_function
from sft_tune.spec.study import StudySpec
from sft_tune.spec.yaml12 import to_flow
from sft_tune.view import words
from sft_tune.view.advice import FEWEST, Advice, Facts


def horizon_rule(facts: Facts) -> Iterator[Advice]:
    """Yield advice when the best trials still gain at the end of their schedules.

    In the last fifth, four of the five best must have gained more than a tenth of all that they
    gained since their first rung. Where the space has epochs, its edge says it better.
    """
    evidence = facts.evidence
    spec = evidence.spec
    if len(evidence.done) < FEWEST or "epochs" in spec.space or is_function(spec.task):
        return
    late = []
    for row in evidence.done[:5]:
        curve = evidence.curves[row.number]
        before = [value for at, value in curve.items() if at <= 80]
        if not before or 100 not in curve:
            continue
        whole = curve[100] - curve[min(curve)]
        late.append((curve[100] - max(before), whole))
    gaining = [last for last, whole in late if whole > 0 and last > 0.1 * whole]
    if len(late) < 4 or len(gaining) < len(late) - 1:
        return
    epochs = evidence.spec.training.epochs
    gain = sorted(gaining)[len(gaining) // 2]
    yield Advice(
        "horizon",
        f"{len(gaining)} of the {len(late)} best trials still gain in the last fifth of their "
        f"schedule (by {words.score(gain)} in the middle); try longer ones, {2 * epochs} epochs "
        "(in a study of another name)",
        {"gaining": len(gaining), "of": len(late), "gain": gain, "epochs": epochs},
        "training",
        f"epochs: {2 * epochs}",
    )


def features_rule(spec: StudySpec) -> Iterator[Advice]:
    """Yield advice when settings of a frozen study keep its heads from features kept once."""
    found = features_forgone(spec)
    if not found:
        return
    lines = [f"{name}: {WITHOUT[name]}" for name in found]
    values = ", ".join(str(value) for values in found.values() for value in values)
    yield Advice(
        "features",
        f"{' and '.join(f'training.{line}' for line in lines)} would train the heads on features "
        "kept once (measured: 68 to 391 times faster, with stacks), without what "
        f"{values} may add; now the frozen backbone is run in every step",
        {"settings": list(found)},
        "training" if len(lines) == 1 else None,
        lines[0] if len(lines) == 1 else None,
        tuple(f"space.{name}" for name in found if name in spec.space),
    )


def overfitting_rule(facts: Facts) -> Iterator[Advice]:
    """Yield advice when three or more of the five best trials carry the flag of overfitting."""
    evidence = facts.evidence
    best = evidence.done[:5]
    since: list[tuple[int, int]] = []
    for row in best:
        for fault in from_flags(row.flags):
            if fault.name == "overfitting" and fault.since is not None:
                since.append((fault.since, row.number))
    if len(since) < 3:
        return
    progress = sorted(at for at, _ in since)[len(since) // 2]
    section, line = _fewer_epochs(evidence.spec, progress)
    yield Advice(
        "overfitting",
        f"{len(since)} of the {len(best)} best trials overfit, since {progress} % in the middle; "
        "train shorter, or with more weight decay, dropout or label smoothing",
        {"trials": [number for _, number in since], "since": progress, "of": len(best)},
        section,
        line,
    )


def _fewer_epochs(spec: StudySpec, progress: int) -> tuple[str, str]:
    parameter = spec.space.get("epochs")
    if parameter is None:
        return "training", f"epochs: {max(1, round(spec.training.epochs * progress / 100))}"
    if parameter.values is not None:
        kept = sorted(v for v in parameter.values if isinstance(v, int))
        return "space", f"epochs: {to_flow(kept[: max(1, len(kept) - 1)])}"
    low, high = parameter.bounds()
    step = parameter.step or 1
    shorter = low + max(0, round((high * progress / 100 - low) / step)) * step
    written = parameter.model_dump(mode="json", exclude_defaults=True)
    return "space", f"epochs: {to_flow({**written, 'high': int(max(low, min(shorter, high)))})}"
