"""What to do next, from the evidence of a study: each piece with its numbers and a line to change.

Every rule is quiet unless its numbers stand out from chance, and says so in its docstring. The
line is YAML for a section of the study file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sft_tune.spec.study import StudySpec
from sft_tune.store.finalist_rows import FinalistRow
from sft_tune.store.rows import EvaluationRow, StudyRow, TrialRow
from sft_tune.view import words
from sft_tune.view.advice import Advice, Facts
from sft_tune.view.advice_search import (
    broken_rule,
    budget_rule,
    failures_rule,
    noise_rule,
    pruner_rule,
)
from sft_tune.view.advice_space import edge_rule, influence_rule
from sft_tune.view.advice_training import features_rule, horizon_rule, overfitting_rule
from sft_tune.view.estimate import Estimate
from sft_tune.view.evidence import gather
from sft_tune.view.finalists import standings

RULES: tuple[Callable[[Facts], Iterator[Advice]], ...] = (
    broken_rule,
    noise_rule,
    edge_rule,
    horizon_rule,
    overfitting_rule,
    influence_rule,
    failures_rule,
    pruner_rule,
    budget_rule,
)


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


def beforehand(spec: StudySpec, cost: Estimate) -> list[Advice]:
    """Return the advice that a measured probe supports before a study is run."""
    found = [*features_rule(spec)]
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
