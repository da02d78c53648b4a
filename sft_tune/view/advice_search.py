"""Rules on the search: a lead within the noise, failures, an eager pruner, an unused budget."""

from __future__ import annotations

from collections.abc import Iterator

from sft_tune.view import noise, words
from sft_tune.view.advice import Advice, Facts
from sft_tune.view.failures import broken, failures
from sft_tune.view.finalists import SURE
from sft_tune.view.pruning import eager_pruner


def noise_rule(facts: Facts) -> Iterator[Advice]:
    """Yield advice when the leader's margin is within the noise: by seeds, else by examples."""
    evidence = facts.evidence
    if len(evidence.done) < 2 or not evidence.spec.space:
        return
    leader, second = evidence.done[0], evidence.done[1]
    margin = abs((leader.value or 0.0) - (second.value or 0.0))
    found = facts.found
    if found is not None and found.searched is not None:
        one = found.leader
        if found.open or (one.chance or 0.0) >= SURE or len(found.finalists) < 2:
            return
        seeds = 2 * max(one.validation.n, 3)
        deviation = one.validation.deviation
        yield Advice(
            "noise",
            f"after {words.plural(one.validation.n, 'seed')} each, trial {one.number} is the best "
            f"with a probability of {words.chance(one.chance or 0)} only (a seed moves its score "
            f"by {words.score(deviation)}); more seeds may decide it",
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
    tied = sum(row.value == leader.value for row in evidence.done)
    close = sum(
        noise.is_noise(metric, leader.value, row.value, facts.examples)
        for row in evidence.done[1:]
        if row.value is not None
    )
    examples = words.plural(facts.examples, "validation example")
    name = evidence.spec.name
    told = (
        f"trial {leader.number} leads by {words.score(margin)}, which {examples} cannot tell from "
        f"chance ({words.plural(close, 'trial')} within it); `sft-tune confirm {name}` before "
        "believing it"
    )
    if tied > 1:
        told = (
            f"{tied} trials tie at {words.score(leader.value)} (trial {leader.number} is the first "
            f"of them); {examples} cannot tell {words.plural(close, 'other trial')} from it; "
            f"`sft-tune confirm {name}` before believing it"
        )
    yield Advice(
        "noise",
        told,
        {"margin": margin, "examples": facts.examples, "within": close, "tied": tied},
        "confirm",
        "seeds: 5",
    )


def broken_rule(facts: Facts) -> Iterator[Advice]:
    """Yield advice when trials crash, or when all failed; see `failures.broken`."""
    found = broken(facts.evidence.rows)
    if found is None:
        return
    show = f"`sft-tune show {facts.evidence.spec.name} {found.number}` has the whole error"
    numbers = {name: value for name, value in found._asdict().items() if name != "reasons"}
    yield Advice("failures", f"{found.in_words()}; {show}", {**numbers, **found.reasons})


def failures_rule(facts: Facts) -> Iterator[Advice]:
    """Yield advice for each reason that ended many trials; see `failures.failures`."""
    for kind, text, numbers, line in failures(facts.evidence):
        yield Advice("failures", text, {"reason": kind, **numbers}, "space" if line else None, line)


def pruner_rule(facts: Facts) -> Iterator[Advice]:
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


def budget_rule(facts: Facts) -> Iterator[Advice]:
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
