"""What to do next, from the evidence of a study: each piece with its numbers and a line to change.

Every rule is quiet unless its numbers stand out from chance, and says so in its docstring. The
line is YAML for a section of the study file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from sft_tune.spec.checks import setting_rule
from sft_tune.spec.faults import from_flags
from sft_tune.spec.function_task import is_function
from sft_tune.spec.space import Parameter, Value
from sft_tune.spec.study import StudySpec
from sft_tune.spec.yaml12 import to_flow
from sft_tune.store.finalists import FinalistRow
from sft_tune.store.rows import EvaluationRow, StudyRow, TrialRow
from sft_tune.view import noise, words
from sft_tune.view.estimate import Estimate
from sft_tune.view.evidence import (
    Evidence,
    common_progress,
    final_scores,
    gather,
    influence_of,
    place_in_range,
    scores_at,
    together,
    without,
)
from sft_tune.view.failures import failures
from sft_tune.view.finalists import Standings, standings
from sft_tune.view.pruning import eager_pruner

FEWEST = 8
"""Completed trials before the shape of a search says anything."""
EDGE = 0.05
NO_INFLUENCE_TRIALS = 40


class Advice(NamedTuple):
    """A piece of advice.

    Attributes:
        kind: edge, horizon, overfitting, influence, failures, noise, pruner, budget, affordable.
        text: what was found, with its numbers, and what to do.
        numbers: the same numbers by name.
        section: the section of the study file that ``line`` belongs in; None: nothing to change.
        line: a line of YAML for that section: ``trials: 60``.
        removes: keys that go with the change, as ``section.key``.
    """

    kind: str
    text: str
    numbers: Mapping[str, Any]
    section: str | None = None
    line: str | None = None
    removes: tuple[str, ...] = ()


class Facts(NamedTuple):
    """What the rules look at.

    Attributes:
        evidence: the trials and their curves.
        found: the finalists; None where none was trained.
        examples: in the validation split; None: unknown.
        study: the study at a glance; None: unknown.
    """

    evidence: Evidence
    found: Standings | None
    examples: int | None
    study: StudyRow | None

    @property
    def is_foreign(self) -> bool:
        """Whether another program made the study with Optuna."""
        return self.study is not None and not self.study.managed


def advise(
    spec: StudySpec,
    rows: Sequence[TrialRow],
    rungs: Sequence[EvaluationRow],
    *,
    runs: Sequence[FinalistRow] = (),
    examples: int | None = None,
    study: StudyRow | None = None,
) -> list[Advice]:
    """Return the advice that the evidence supports; none of a healthy study.

    Args:
        spec: the study.
        rows: its trials.
        rungs: their rungs.
        runs: its confirmation runs.
        examples: in its validation split; None: unknown.
        study: the study at a glance, for its budget; None: unknown.
    """
    evidence = gather(spec, rows, rungs)
    facts = Facts(evidence, standings(spec, rows, runs), examples, study)
    return [piece for rule in RULES for piece in rule(facts)]


def _edge(facts: Facts) -> Iterator[Advice]:
    """Yield each range whose edge the best trials lean on.

    The leader must lie within 5 % of the edge, and so must the middle of the best quarter of the
    completed trials lie in the outer fifth: one trial at the edge is often chance.
    """
    evidence = facts.evidence
    if len(evidence.done) < FEWEST:
        return
    leader = evidence.done[0]
    for name, parameter in evidence.spec.space.items():
        value = leader.params.get(name)
        place = place_in_range(parameter, value)
        if place is None or EDGE < place < 1 - EDGE:
            continue
        best = [row for row in evidence.done if name in row.params]
        best = best[: max(3, len(best) // 4)]
        places = sorted(place_in_range(parameter, row.params[name]) or 0.0 for row in best)
        middle = places[len(places) // 2]
        upper = place > 0.5
        if not (middle >= 0.8 if upper else middle <= 0.2):
            continue
        free = is_function(evidence.spec.task)
        wider = widened(name, parameter, upper=upper, free=free)
        if wider is None:
            continue
        end = "upper" if upper else "lower"
        low, high = wider["low"], wider["high"]
        goes_on = "" if facts.is_foreign else " (--accept-changes goes on with it)"
        yield Advice(
            "edge",
            f"{name}: the best trial has {words.setting(value)}, at the {end} edge of its range, "
            f"and so have most of the best {len(best)}; widen it to "
            f"{words.setting(high if upper else low)}{goes_on}",
            {"name": name, "value": value, "place": place, "middle_of_best": middle, **wider},
            "space",
            f"{name}: {to_flow(wider)}",
        )


def widened(
    name: str, parameter: Parameter, *, upper: bool, free: bool = False
) -> dict[str, Any] | None:
    """Return the range of ``name`` wider at one end, as a study file has it; None: it cannot be.

    A logarithmic range grows by half of its decades (by one at the most), another by half of its
    width, in whole steps, as far as the setting admits; one of a training function (``free``)
    admits any.
    """
    low, high = parameter.bounds()
    step = parameter.step or (1 if parameter.is_integer else None)
    for share in (0.5, 0.25, 0.1):
        if parameter.log:
            factor = min(10.0, (high / low) ** share)
            moved = high * factor if upper else low / factor
        else:
            width = (high - low) * share
            if step is not None:
                width = max(step, round(width / step) * step)
            moved = high + width if upper else low - width
        new: Value = round(moved) if parameter.is_integer else float(f"{moved:.2g}")
        if new in (low, high) or not (free or setting_rule(name, new) is None):
            continue
        written = parameter.model_dump(mode="json", exclude_defaults=True)
        return {**written, "high" if upper else "low": new}
    return None


def _horizon(facts: Facts) -> Iterator[Advice]:
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


def _overfitting(facts: Facts) -> Iterator[Advice]:
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


def _influence(facts: Facts) -> Iterator[Advice]:
    """Yield each parameter that says nothing about the score, where others are seen to.

    At least 40 trials; no better than the middle of its permutation null at the progress that all
    trials reached, at the end, and in what other influences leave there; nothing said together
    with another parameter either; and some other parameter is far from its own (p < 0.01), so
    that the trials can show an influence where there is one. Of synthetic studies in which every
    parameter matters about 1 in 100 hears of one that does not.
    """
    evidence = facts.evidence
    progress = common_progress(evidence)
    if progress is None:
        return
    early, final = scores_at(evidence, progress), final_scores(evidence)
    if len(early) < NO_INFLUENCE_TRIALS or not evidence.done:
        return
    found = {name: influence_of(evidence, name, early) for name in evidence.spec.space}
    ends = {name: influence_of(evidence, name, final) for name in evidence.spec.space}
    seen = [
        name
        for name in evidence.spec.space
        if any(one is not None and one.p < 0.01 for one in (found[name], ends[name]))
    ]
    if not seen:
        return
    rest = without(evidence, seen, final)
    at = f"step {progress}" if facts.is_foreign else f"{progress} %"
    needed = {other for p in evidence.spec.space.values() for other in p.when or {}}
    for name, one in found.items():
        at_end = ends[name]
        if one is None or at_end is None or name in needed or min(one.p, at_end.p) < 0.5:
            continue
        left = influence_of(evidence, name, rest)
        if left is None or left.p < 0.5 or _matters_with_others(evidence, name, rest):
            continue
        value = evidence.done[0].params.get(name)
        if value is None and name not in evidence.done[0].params:
            continue
        section, _, key = name.rpartition(".")
        # A function's parameter has no place in the study file but the space.
        is_ours = not is_function(evidence.spec.task)
        yield Advice(
            "influence",
            f"{name} shows no influence on {evidence.spec.objective.metric}: it explains "
            f"{one.share:.0%} of the ranks of {one.n} trials at {at}, as much as chance "
            f"(p {one.p:.2f}; {at_end.p:.2f} of {at_end.n} at the end); fix it in a next study",
            {"name": name, "share": one.share, "p": one.p, "p_at_end": at_end.p, "trials": one.n},
            (section or "training") if is_ours else None,
            to_flow({key: value})[1:-1] if is_ours else None,
            (f"space.{name}",) if is_ours else (),
        )


def _matters_with_others(evidence: Evidence, name: str, rest: Mapping[int, float]) -> bool:
    """Tell whether ``name`` may say something together with another parameter (p < 0.2)."""
    others = (other for other in evidence.spec.space if other != name)
    pairs = (together(evidence, name, other, rest) for other in others)
    return any(pair is not None and pair.p < 0.2 for pair in pairs)


def _failures(facts: Facts) -> Iterator[Advice]:
    for kind, text, numbers, line in failures(facts.evidence):
        yield Advice("failures", text, {"reason": kind, **numbers}, "space" if line else None, line)


def _noise(facts: Facts) -> Iterator[Advice]:
    """Yield advice when the leader's margin is within the noise: by seeds, else by examples."""
    evidence = facts.evidence
    if len(evidence.done) < 2 or not evidence.spec.space:
        return
    leader, second = evidence.done[0], evidence.done[1]
    margin = abs((leader.value or 0.0) - (second.value or 0.0))
    found = facts.found
    if found is not None and found.searched is not None:
        if found.open or found.confirmed or len(found.finalists) < 2:
            return
        one = found.leader
        seeds = 2 * max(one.validation.n, 3)
        deviation = one.validation.deviation
        yield Advice(
            "noise",
            f"after {words.plural(one.validation.n, 'seed')} each, trial {one.number} is the best "
            f"with a probability of {one.chance or 0:.0%} only (a seed moves its score by "
            f"{words.score(deviation)}); more seeds may decide it",
            {"chance": one.chance, "deviation": deviation, "margin": margin},
            "confirm",
            f"seeds: {seeds}",
        )
        return
    metric = evidence.spec.objective.metric
    if not facts.examples or leader.value is None or second.value is None:
        return
    if not noise.is_noise(metric, leader.value, second.value, facts.examples):
        return
    close = sum(
        noise.is_noise(metric, leader.value, row.value, facts.examples)
        for row in evidence.done[1:]
        if row.value is not None
    )
    examples = words.plural(facts.examples, "validation example")
    yield Advice(
        "noise",
        f"trial {leader.number} leads by {words.score(margin)}, which {examples} cannot tell from "
        f"chance ({words.plural(close, 'trial')} within it); `sft-tune confirm "
        f"{evidence.spec.name}` before believing it",
        {"margin": margin, "examples": facts.examples, "within": close},
        "confirm",
        "seeds: 5",
    )


def _pruner(facts: Facts) -> Iterator[Advice]:
    """Yield advice when trials were cut that would have led; see `pruning.eager_pruner`.

    The pruner of a study that another program made is not known: what to change is said in words.
    """
    found = eager_pruner(facts.evidence)
    if found is None:
        return
    foreign = facts.is_foreign
    rung = f"step {found.progress}" if foreign else f"{found.progress} %"
    then = (
        f"cut none before step {found.first} (n_warmup_steps of Optuna's median and percentile "
        "pruners, min_resource of its successive halving and Hyperband)"
        if foreign
        else "let trials come further first"
    )
    yield Advice(
        "pruner",
        f"the pruner may cut too early: of {words.plural(found.cut, 'trial')} cut, about "
        f"{found.would_lead:.1f} would have led, by how the {found.completed} completed ones went "
        f"on from there (rank correlation of {rung} with the end: {found.correlation:.2f}); {then}",
        found._asdict(),
        None if foreign else "pruner",
        None if foreign else f"first: {found.first}",
    )


def _budget(facts: Facts) -> Iterator[Advice]:
    """Yield advice when a study that has ended left much of its hours unused."""
    study = facts.study
    if study is None or study.ended != "trials" or not study.max_hours or not study.max_trials:
        return
    used = (study.active_seconds or 0.0) / 3600
    if used <= 0 or used > 0.5 * study.max_hours:
        return
    more = min(study.max_hours / used, 4.0)
    trials = int(study.max_trials * more)
    if trials <= study.max_trials or facts.evidence.spec.sampler.name == "grid":
        return
    yield Advice(
        "budget",
        f"its {study.max_trials} trials took {words.duration(used * 3600)} of the "
        f"{words.number(study.max_hours)} hours; about {trials} would fit",
        {"used_hours": used, "hours": study.max_hours, "trials": trials},
        "budget",
        f"trials: {trials}",
    )


RULES: tuple[Callable[[Facts], Iterator[Advice]], ...] = (
    _noise,
    _edge,
    _horizon,
    _overfitting,
    _influence,
    _failures,
    _pruner,
    _budget,
)


def beforehand(spec: StudySpec, cost: Estimate) -> list[Advice]:
    """Return the advice that a measured probe supports before a study is run."""
    found = []
    trials = cost.trials if cost.affordable is None else cost.affordable
    hours = spec.budget.hours
    if cost.affordable is not None and cost.trials and cost.affordable < cost.trials and hours:
        found.append(
            Advice(
                "affordable",
                f"budget.hours ({words.number(hours)}) hold about {cost.affordable} whole trials "
                f"of {words.duration(cost.mean)}, not the {cost.trials} of budget.trials",
                {"affordable": cost.affordable, "trials": cost.trials, "mean": cost.mean},
                "budget",
                f"trials: {cost.affordable}",
            )
        )
        trials = cost.affordable
    guided = spec.sampler.name in ("tpe", "gp")
    if guided and trials is not None and spec.space and trials <= spec.sampler.startup_trials:
        found.append(
            Advice(
                "affordable",
                f"the budget holds about {words.plural(trials, 'trial')}, and the first "
                f"{spec.sampler.startup_trials} of {spec.sampler.name} are random: it would never "
                "begin to model",
                {"trials": trials, "startup_trials": spec.sampler.startup_trials},
                "sampler",
                f"startup_trials: {max(1, trials // 3)}",
            )
        )
    return found


def draw_advice(found: Sequence[Advice], *, most: int | None = None) -> RenderableType:
    """Return each piece of advice in words, and the line to change below it.

    Args:
        found: the advice.
        most: show no more than so many; None: all.
    """
    parts: list[RenderableType] = []
    for piece in found[:most]:
        parts.append(Text.assemble(("• ", "dim"), piece.text))
        if piece.line is not None:
            gone = f"   # and without {', '.join(piece.removes)}" if piece.removes else ""
            parts.append(Text(f"    {piece.section}:\n      {piece.line}{gone}", "cyan"))
    if most is not None and len(found) > most:
        parts.append(Text(f"and {len(found) - most} more: `sft-tune advise`", "dim"))
    return Group(*parts)


def advice_json(found: Sequence[Advice]) -> list[dict[str, Any]]:
    """Return the advice as plain values."""
    return [piece._asdict() for piece in found]
