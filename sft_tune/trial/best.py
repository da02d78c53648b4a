"""The best weights of a trial, in a file that says all that is needed to use them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sft_tune.trial import checkpoint
from sft_tune.trial.data import ImageSplit
from sft_tune.trial.lora import exported
from sft_tune.trial.outcome import Evaluation
from sft_tune.trial.trainee import Trainee


@dataclass(frozen=True)
class Best:
    """A trial at its best rung.

    Attributes:
        value: the objective.
        metrics: all metrics, of the validation split.
        progress: the rung, in percent.
        step: optimizer steps done.
        card: what the weights are: configuration, labels, normalization, ... (plain values).
        weights: every tensor of the module (LoRA merged, unless asked not to): copies on the CPU,
            but of a backbone that stays as it is, whose features are kept, the tensors themselves.
    """

    value: float
    metrics: dict[str, float]
    progress: int
    step: int
    card: dict[str, Any]
    weights: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        trainee: Trainee,
        value: float,
        evaluation: Evaluation,
        step: int,
        before: Best | None = None,
    ) -> Best:
        """Copy the weights that ``trainee`` has now, after ``step`` steps.

        Of the best rung ``before`` what cannot have changed is taken over.
        """
        return cls(
            value=value,
            metrics=dict(evaluation.metrics),
            progress=evaluation.progress,
            step=step,
            card=describe(trainee) if before is None else before.card,
            weights=_weights(trainee, before),
        )

    def header(self) -> dict[str, Any]:
        """Return all but the weights, as plain values."""
        names = ("value", "metrics", "progress", "step", "card")
        return {name: getattr(self, name) for name in names}


def _weights(trainee: Trainee, before: Best | None) -> dict[str, Tensor]:
    """Return copies of the weights, on the CPU; of a fixed backbone the tensors themselves."""
    model = trainee.model
    if not trainee.backbone_stays:
        state = exported(model.module, trainee.config.model)
        return {name: part.detach().to("cpu", copy=True) for name, part in state.items()}
    fixed = model.module.state_dict() if before is None else before.weights
    changed = {
        f"{head}.{name}": part.detach().to("cpu", copy=True)
        for head in model.head
        for name, part in model.module.get_submodule(head).state_dict().items()
    }
    return {**{name: part.detach() for name, part in fixed.items()}, **changed}


def describe(trainee: Trainee) -> dict[str, Any]:
    """Return what rebuilds the module around its weights and feeds it, as plain values."""
    train = trainee.data.train
    return {
        "config": trainee.config.model_dump(mode="json"),
        "labels": list(trainee.data.labels),
        "stats": trainee.data.stats,
        "image_size": list(train.pixels.shape[2:]) if isinstance(train, ImageSplit) else None,
        "normalize": trainee.model.normalize,
        "model_config": trainee.model.config,
    }


def write_best(path: Path, best: Best) -> None:
    """Write ``best`` to ``path``, atomically.

    Raises:
        OSError: when it cannot be written.
    """
    checkpoint.write(path, best.weights, best.header())
