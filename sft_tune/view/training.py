"""One configuration that is trained without a search: its rungs as they come, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_tune.view import words


def rung_line(metric: str, evaluation: Mapping[str, Any]) -> Text:
    """Return the numbers of a rung on one line, the objective ``metric`` first."""
    metrics = evaluation["metrics"]
    line = Text(f"{evaluation['progress']:3d} %  ")
    line.append(f"{metric} {words.score(metrics[metric])}", "bold")
    for name, value in metrics.items():
        if name != metric:
            line.append(f"  {name} {words.score(value)}")
    line.append(f"  train loss {words.score(evaluation['train_loss'])}")
    line.append(f"  {words.duration(evaluation['seconds'])}", "dim")
    return line


def draw_result(metric: str, result: Mapping[str, Any]) -> RenderableType:
    """Return how the training ended: the best rung, and where its weights lie."""
    reason = words.REASONS.get(result["reason"], result["reason"])
    head = Text.assemble((reason, "bold"))
    if result["note"]:
        head.append(f": {result['note']}")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    if result["value"] is not None:
        at = f", at {result['best_progress']} % of {words.plural(result['horizon'], 'step')}"
        if (folds := words.folds(result.get("flags"))) is not None:
            at = f", the mean of {folds}"
        facts.add_row(metric, f"{words.score(result['value'])}{at}")
    facts.add_row("time", words.duration(result["seconds"]))
    if result["checkpoint"] is not None:
        facts.add_row("weights", words.short_path(Path(result["checkpoint"])))
    return Group(head, facts)
