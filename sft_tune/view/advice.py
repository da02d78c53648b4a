"""A piece of advice, what rules look at to find one, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from sft_tune.store.rows import StudyRow
from sft_tune.view.evidence import Evidence
from sft_tune.view.finalists import Standings

FEWEST = 8
"""Completed trials before the shape of a search says anything."""


class Advice(NamedTuple):
    """A piece of advice.

    Attributes:
        kind: edge, horizon, overfitting, influence, failures, noise, pruner, budget, affordable,
            features.
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
