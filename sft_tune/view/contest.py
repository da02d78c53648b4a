"""Studies side by side: what each found, for how much, and whether the difference is one.

Rows first: `contest` computes everything that tables, page and program show. Costs are of trials
that have ended; a result that was taken over from an equal configuration is a trial that took no
time. Confirmation runs are not part of a search and count nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sft_tune.errors import UserError
from sft_tune.spec.function_task import is_function
from sft_tune.spec.objective import limits_of
from sft_tune.spec.plan import weighs_cost
from sft_tune.view.contest_cost import AXES, Chance, Step, best_within, chances, steps_of
from sft_tune.view.finalists import Finalist, Standings
from sft_tune.view.material import Material
from sft_tune.view.noise import PROPORTIONS, is_noise
from sft_tune.view.statistics import Interval, paired_difference
from sft_tune.view.tables import flat_settings

DATA_KEYS = (
    "source",
    "subset",
    "train",
    "validation",
    "validation_fraction",
    "validation_limit",
    "test_fraction",
    "split_seed",
    "label_column",
    "classes",
)
"""Keys of `data` by which a study is validated on other examples, or for other targets."""


class Entrant(NamedTuple):
    """A study among the others.

    Attributes:
        label: what it is called here: its name, with its database where names are equal.
        material: the study.
        searcher: its sampler and pruner; None: not known.
        guided: whether later trials learn from earlier ones (unknown counts as guided).
        steps: one for each ended trial.
        at_same: its best value with the same budget, by axis of `AXES`; None: nothing, or unknown.
        chances: what parts of the same budget find; empty where no trial has a value.
        settings: the complete configuration of the best trial, under the names of the space.
        confirmed: the best trial over fresh seeds; else the leader of the finalists; None: none.
    """

    label: str
    material: Material
    searcher: str | None
    guided: bool
    steps: tuple[Step, ...]
    at_same: Mapping[str, float | None]
    chances: tuple[Chance, ...]
    settings: Mapping[str, Any]
    confirmed: Finalist | None

    @property
    def spent(self) -> Step:
        """What all ended trials took."""
        return self.steps[-1] if self.steps else Step(0, 0.0, 0.0, None)


class Contest(NamedTuple):
    """The studies side by side.

    Attributes:
        metric: the objective of all of them.
        maximize: whether more of it is better.
        entrants: the studies, in the order given.
        same: the smallest of what they spent, by axis of `AXES`; None: of some it is not known.
        measure: what ``Entrant.chances`` divide: ``seconds`` where known of all, else ``trials``.
        differing: settings in which the best trials differ, by name, a value for each study
            (None: it has no such setting).
        other_data: keys of `data` that differ, so that values are of other examples.
        close: whether the two best winners are within the noise of their validation examples;
            None: not known, or of other examples.
        differences: of each study's confirmed trial to that of the first study with one, over
            the seeds that both have; None: of that study itself, or no such seed.
    """

    metric: str
    maximize: bool
    entrants: tuple[Entrant, ...]
    same: Mapping[str, float | None]
    measure: str
    differing: Mapping[str, tuple[Any, ...]]
    other_data: tuple[str, ...]
    close: bool | None
    differences: tuple[Interval | None, ...]

    @property
    def leaders(self) -> list[Entrant]:
        """The studies with the best value for the same budget; several when they are equal."""
        found = {e.label: e.at_same[self.measure] for e in self.entrants}
        known = [value for value in found.values() if value is not None]
        if not known:
            return []
        best = max(known) if self.maximize else min(known)
        return [e for e in self.entrants if found[e.label] == best]


def contest(
    materials: Sequence[Material], labels: Sequence[str], standings: Sequence[Standings | None]
) -> Contest:
    """Return the studies ``materials`` side by side.

    Args:
        materials: at least two studies.
        labels: what they are called, all different.
        standings: their finalists; None of a study without.

    Raises:
        UserError: they have not the same objective.
    """
    _same_objective(materials, labels)
    maximize, spec = materials[0].maximize, materials[0].spec
    ways = [steps_of(material) for material in materials]
    same = {axis: _smallest(axis, ways) for axis in AXES}
    measure = "seconds" if same["seconds"] else "trials"
    entrants = tuple(
        Entrant(
            label=label,
            material=material,
            searcher=_searcher(material),
            guided=_guided(material),
            steps=steps,
            at_same={axis: best_within(steps, axis, same[axis]) for axis in AXES},
            chances=chances(material, steps, measure, same[measure] or 0.0),
            settings=_settings(material),
            confirmed=_confirmed(material, found),
        )
        for label, material, steps, found in zip(labels, materials, ways, standings, strict=True)
    )
    other_data = _other_data(materials)
    return Contest(
        metric=materials[0].metric,
        maximize=maximize,
        entrants=entrants,
        same=same,
        measure=measure,
        differing=_differing(entrants),
        other_data=other_data,
        close=None if other_data else _close(entrants, maximize),
        differences=_differences(entrants, limits_of(spec.objective, spec.task)),
    )


def _same_objective(materials: Sequence[Material], labels: Sequence[str]) -> None:
    first = materials[0]
    for material, label in zip(materials[1:], labels[1:], strict=True):
        for what, mine, other in (
            ("metric", first.metric, material.metric),
            ("direction", first.study.direction, material.study.direction),
        ):
            if mine != other:
                remedy = (
                    "; `sft-tune import --metric` says what an imported value is"
                    if what == "metric" and not (first.study.managed and material.study.managed)
                    else ""
                )
                raise UserError(
                    f"only studies of one {what} can be compared: {labels[0]} has {mine!r}, "
                    f"{label} has {other!r}{remedy}"
                )


def _smallest(axis: str, ways: Sequence[Sequence[Step]]) -> float | None:
    spent = [getattr(steps[-1], axis) if steps else 0 for steps in ways]
    return None if any(value is None for value in spent) else min(spent)


def _searcher(material: Material) -> str | None:
    if material.record is None:
        return None
    spec = material.record.spec
    cut = "no pruner" if spec.pruner.name == "none" else spec.pruner.name
    return f"{spec.sampler.name}{' (cost-aware)' if weighs_cost(spec) else ''}, {cut}"


def _guided(material: Material) -> bool:
    return material.record is None or material.record.spec.sampler.name in ("tpe", "gp")


def _settings(material: Material) -> dict[str, Any]:
    best = material.best
    if best is None:
        return {}
    fixed = {} if best.config is None else flat_settings(best.config)
    return {**fixed, **best.params}


def _confirmed(material: Material, found: Standings | None) -> Finalist | None:
    return None if found is None else found.searched or found.leader


def _differences(
    entrants: Sequence[Entrant], limits: tuple[float | None, float | None]
) -> tuple[Interval | None, ...]:
    """Return the paired differences to the first confirmed trial; see `Contest.differences`.

    Studies of one seed train their finalists over the same fresh seeds, so that what a seed does
    to both cancels out.
    """
    scores = [
        {} if one is None else dict(zip(one.seeds, one.values, strict=True))
        for one in (entrant.confirmed for entrant in entrants)
    ]
    first = next((own for own in scores if own), None)
    found: list[Interval | None] = []
    for own in scores:
        shared = [] if first is None or own is first else [seed for seed in own if seed in first]
        pairs = [(own[seed], first[seed]) for seed in shared] if first is not None else []
        found.append(paired_difference(*zip(*pairs, strict=True), limits=limits) if pairs else None)
    return tuple(found)


def _differing(entrants: Sequence[Entrant]) -> dict[str, tuple[Any, ...]]:
    with_best = [e for e in entrants if e.settings]
    names = dict.fromkeys(name for e in with_best for name in e.settings)
    rows = {name: tuple(e.settings.get(name) for e in entrants) for name in names}
    return {
        name: values
        for name, values in rows.items()
        if len({repr(e.settings.get(name)) for e in with_best}) > 1
    }


def _other_data(materials: Sequence[Material]) -> tuple[str, ...]:
    """Return the keys of `data` that decide what is validated on and are not the same in all."""
    specs = [one.record.spec for one in materials if one.record is not None]
    known = [spec.data for spec in specs if not is_function(spec.task)]  # theirs is not known
    return tuple(key for key in DATA_KEYS if len({repr(getattr(d, key)) for d in known}) > 1)


def _close(entrants: Sequence[Entrant], maximize: bool) -> bool | None:
    bests = [
        (e.material.best.value, e.material.examples)
        for e in entrants
        if e.material.best is not None and e.material.best.value is not None
    ]
    metric = entrants[0].material.metric
    if len(bests) < 2 or metric not in PROPORTIONS or any(not count for _, count in bests):
        return None
    bests.sort(key=lambda one: one[0], reverse=maximize)
    (first, n), (second, m) = bests[:2]
    return is_noise(metric, first, second, min(n or 1, m or 1))
