"""What is measured, each as a command: `python -m tests.benchmarks [NAME ...]`.

A benchmark is a module of this package with `run(short: bool) -> Table`; it is listed in
`BENCHMARKS` by its name. `short` is a form of seconds for a look and for CI: it shows that the
benchmark runs, not what it measures.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

BENCHMARKS = {
    "scale": "the next trial, the commands and the report of a study of up to 10,000 trials",
    "overhead": "the tuner's own cost: device seconds that no trial used, on 2 workers",
    "replay": "samplers and pruners over 1,000 recorded fine-tunes: regret against cost",
    "to_target": "seconds to what 40 random trials find, beside Optuna and Ray Tune",
    "to_target_frozen": "the same where only the head of a backbone is trained",
    "to_target_images": "the same where a whole ResNet-18 is trained",
    "throughput_short": "trials per hour beside the same tools, of half a second each",
    "throughput_images": "trials per hour beside Optuna, Trainer's search and Ray Tune, ResNet-18",
    "throughput_texts": "the same with a text encoder and texts of mixed length",
    "heads": "frozen backbones: features kept once against the backbone run every epoch",
}


@dataclass(frozen=True)
class Table:
    """What a benchmark found.

    Attributes:
        title: what was measured, on what, and n.
        columns: names.
        rows: cells, as text.
        notes: targets, whether they were met, and what else a reader must know.
        met: whether every target was met; None where there is none.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=list)
    met: bool | None = None

    def text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(cells))
            for cells in (zip(row, widths, strict=True) for row in (self.columns, *self.rows))
        ]
        return "\n".join([self.title, "", *(line.rstrip() for line in lines), "", *self.notes])


def load(name: str) -> Callable[[bool], Table]:
    """Return the function that runs the benchmark ``name``."""
    run: Callable[[bool], Table] = importlib.import_module(f"tests.benchmarks.{name}").run
    return run
