"""What an export is: whose weights, which files, and the numbers that they gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sft_tune.run.register import library_versions
from sft_tune.spec.config import TrialConfig

How = Literal["trial", "refit", "soup"]

MARKER = "export.json"
STUDY_FILE = "study.yaml"
CARD = "README.md"


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        study: name of the study.
        number: of the trial (of a soup: of its first ingredient).
        how: the trial's own weights, those of a refit on train and validation, or a soup.
        config: the trial's configuration.
        folder: where it is.
        metrics: of validation, measured with the exported files; empty for a refit.
        ingredients: of a soup: the trials whose weights were averaged.
        tried: of a soup: what became of each other candidate (see `soup.cook`).
        facts: of the model and its data (see `trial.export.write.export`).
        onnx: whether there is a ``model.onnx``.
        difference: the largest of a logit between the files and the weights, relative.
        files: their names.
        versions: of the libraries that wrote it.
    """

    study: str
    number: int
    how: How
    config: TrialConfig
    folder: Path
    metrics: Mapping[str, float]
    ingredients: Sequence[int]
    tried: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]
    onnx: bool
    difference: float
    files: Sequence[str]
    versions: Mapping[str, str] = field(default_factory=library_versions)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, without the folder, which may be moved."""
        return {
            "study": self.study,
            "trial": self.number,
            "weights": self.how,
            "validation": dict(self.metrics),
            "ingredients": list(self.ingredients),
            "tried": [dict(one) for one in self.tried],
            "onnx": self.onnx,
            "largest_difference": self.difference,
            "files": list(self.files),
            "config": self.config.model_dump(mode="json"),
            "versions": dict(self.versions),
            **self.facts,
        }
