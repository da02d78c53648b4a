"""The best trial of a study: its configuration, its numbers, its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sft_tune.errors import ModelError

if TYPE_CHECKING:
    import torch

    from sft_tune.api.study import Study
    from sft_tune.spec.config import TrialConfig
    from sft_tune.spec.space import Value


@dataclass(frozen=True, repr=False)
class Best:
    """The best trial of a study, on validation.

    Attributes:
        number: of the trial.
        config: its complete configuration.
        params: its point of the space.
        value: the objective at its best rung.
        metrics: every validation metric there.
        checkpoint: its best weights (safetensors), a path, or a URL where `storage.artifacts` is
            one; None where they were not kept.
        confirmed: whether fresh seeds say that it is likely the best (see `Study.confirm`).
    """

    number: int
    config: TrialConfig
    params: Mapping[str, Value]
    value: float
    metrics: Mapping[str, float]
    checkpoint: Path | str | None
    confirmed: bool = False
    _study: Study | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        """Say in a line what it is; the configuration alone would be fifty."""
        from sft_tune.view import words

        of = "" if self._study is None else f" of {self._study.name!r}"
        reached = f"{self.config.objective.metric} {words.score(self.value)}"
        told = ", ".join(part for part in (reached, words.settings(self.params)) if part)
        return f"<Best: trial {self.number}{of}, {told}>"

    def load_model(self, device: str = "cpu") -> torch.nn.Module:
        """Return the fine-tuned model, in evaluation mode; its ``labels`` are the classes' names.

        Image models of torchvision take pixels [b, 3, h, w], scaled to 0..1 and normalized by
        its ``normalize`` (mean, deviation), and return logits [b, classes]. Models of
        transformers are called as their library says.

        Raises:
            ModelError: when the checkpoint is missing or damaged, or cannot be fetched.
        """
        if self.checkpoint is None:
            raise ModelError(f"the weights of trial {self.number} were not kept")
        from sft_tune.run.messages import cache_folder
        from sft_tune.trial.load import fetch_checkpoint, load_checkpoint

        path = self.checkpoint
        if isinstance(path, str):
            path = fetch_checkpoint(path, cache_folder())
        return load_checkpoint(path, device)

    def export(self, folder: str | Path, *, onnx: bool = False, force: bool = False) -> Path:
        """Write these weights to ``folder`` in their library's own format; see `Study.export`."""
        if self._study is None:
            raise ModelError(f"trial {self.number} is of no study; use Study.export")
        return self._study.export(folder, trial=self.number, onnx=onnx, force=force)
