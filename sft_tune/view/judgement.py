"""What the trials and finalists of a study say, of a study that has been read whole."""

from __future__ import annotations

from sft_tune.view.advice import Advice
from sft_tune.view.advice_rules import advise
from sft_tune.view.evidence import Evidence, gather
from sft_tune.view.finalists import Standings, standings
from sft_tune.view.material import Material


def evidence_of(material: Material) -> Evidence:
    """Return the evidence in the study's trials and rungs."""
    return gather(material.spec, material.trials, material.rungs)


def standings_of(material: Material) -> Standings | None:
    """Return how the study's finalists stand; None before any run has ended with a value."""
    return standings(material.spec, material.trials, material.runs)


def advice_of(material: Material) -> list[Advice]:
    """Return the advice that the study's trials, rungs and finalists support."""
    return advise(
        material.spec,
        material.trials,
        material.rungs,
        runs=material.runs,
        examples=material.examples,
        study=material.study,
    )


def unit_of(material: Material) -> str:
    """Return what progress is counted in: percent, or the steps that another program reported."""
    return "%" if material.study.managed else "steps"
