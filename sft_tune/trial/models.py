"""Pretrained models with a new head that fits the labels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from sft_tune.errors import ModelError
from sft_tune.spec.data import NormalizeSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.tasks import TASKS, Task
from sft_tune.trial.blocks import Blocks, find_blocks
from sft_tune.trial.heads import in_head

Channels = tuple[float, float, float]
Normalize = tuple[Channels, Channels]
HALF: Channels = (0.5, 0.5, 0.5)


class Writing(NamedTuple):
    """How texts are written: the beams of the search, and the most tokens of one."""

    beams: int
    max_new_tokens: int


class CompiledCall(Protocol):
    """What is called in place of a module.

    Attributes:
        whole_batches: whether a batch must go through it at once.
    """

    whole_batches: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module answers."""

    def close(self) -> None:
        """Give back what it holds of the device's memory: it is not called any more."""

    def failed(self, why: str) -> None:
        """Tell that the module itself is called from now on."""


@dataclass
class BuiltModel:
    """A model ready to be fine-tuned.

    Attributes:
        module: in float32, on the CPU until `to` moves it.
        head: names of the modules that are the new head (see `sft_tune.trial.heads`).
        normalize: mean and deviation per channel that its pixels (0..1) are normalized with.
        config: what rebuilds a transformers model without its folder; None for the others.
        extra: arguments that every forward pass gets besides the inputs.
        dense: whether it has logits for every pixel.
        detector: whether it answers with losses and boxes, and normalizes its pixels itself.
        chain: modules of the head in the order of their calls, where features come as inputs.
        writes: whether it is a language model, whose logits are of the tokens of a vocabulary.
        compiled: what is called in place of the module while it trains; None: the module.
        writing: how it writes texts to be measured; None: it does not.
    """

    module: nn.Module
    head: tuple[str, ...]
    normalize: Normalize
    config: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None
    dense: bool = False
    detector: bool = False
    chain: tuple[str, ...] = ()
    writes: bool = False
    compiled: CompiledCall | None = None
    writing: Writing | None = None

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits of ``inputs``: pixel_values, or input_ids and masks.

        They are [b, classes], or what the task of the model has; of every pixel
        [b, classes, h, w], made as large as the images where the model's are smaller. Of the
        features of `sft_tune.trial.features` only the head is called.
        """
        if "features" in inputs:
            return self.head_logits(self.chain, inputs["features"])
        training = self.compiled is not None and self.module.training
        call: Any = self.compiled if training else self.module
        if self.config is None:
            answer = call(inputs["pixel_values"])
            logits: Tensor = answer["out"] if self.dense else answer
        else:
            if self.writes:
                inputs = self._written_out(inputs)
            logits = call(**inputs, **(self.extra or {})).logits
        if self.dense and logits.shape[2:] != (size := inputs["pixel_values"].shape[2:]):
            logits = functional.interpolate(logits.float(), size, mode="bilinear")
        return logits

    def outputs(self, inputs: dict[str, Tensor]) -> Any:
        """Return what a task is given of ``inputs``: logits; of a detector see `detection`."""
        if self.detector:
            from sft_tune.trial import detection

            return detection.answer(self.module, inputs)
        return self.logits(inputs)

    def statistics(self, inputs: dict[str, Tensor]) -> None:
        """Run the module over ``inputs`` as one batch, so that batch norm learns from them."""
        if self.detector:
            from sft_tune.trial import detection

            detection.statistics(self.module, inputs)
        else:
            self.logits(inputs)

    def _written_out(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        from sft_tune.trial.models_language import forward_arguments

        kind = next(iter(inputs.values())).device.type
        if torch.is_autocast_enabled(kind):
            return forward_arguments(self.module, inputs, torch.get_autocast_dtype(kind))
        return forward_arguments(self.module, inputs, next(self.module.parameters()).dtype)

    def head_logits(self, chain: tuple[str, ...], features: Tensor) -> Tensor:
        """Return what the modules ``chain``, one after the other, make of ``features``."""
        for name in chain:
            features = self.module.get_submodule(name)(features)
        return features

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of the module, from input to output."""
        return find_blocks(self.module, self.head)

    def in_head(self, name: str) -> bool:
        """Tell whether the parameter ``name`` belongs to the head."""
        return in_head(name, self.head)

    def lay_channels_last(self) -> BuiltModel:
        """Lay the kernels of convolutions out with their channels last, and return self.

        Tensor cores read images so. A convolution brings what it is given to the layout of its
        kernel, and layers after it keep that: the images themselves may have any.
        """
        convert_conv2d_weight_memory_format(self.module, torch.channels_last)
        return self

    def to(self, device: torch.device) -> BuiltModel:
        """Move the module to ``device``, and return self."""
        self.module.to(device)
        return self


def build_model(
    task: Task,
    model: ModelSpec,
    labels: Sequence[str],
    *,
    image_size: int | None = None,
    normalize: NormalizeSpec | None = None,
    pad_id: int | None = None,
    seed: int = 0,
) -> BuiltModel:
    """Return the pretrained model of ``model`` with a new head for ``labels``.

    The head (and the whole model with ``weights: none``) is drawn from torch's global generator,
    seeded with ``seed`` here: it is the same whether the pretrained weights came from disk or
    from an earlier trial of this process.

    Args:
        task: what the model is for.
        model: its name, weights and dropout.
        labels: in index order.
        image_size: side of the images in pixels, of a detector the shorter side that it is to
            see; None: the model's own.
        normalize: what the study file says of normalization; None: the default of the weights.
        pad_id: the token that pads texts, for models that look for it.
        seed: of the new parameters.

    Raises:
        ModelError: for a model or weights that are unknown, cannot be had, or do not fit.
    """
    library, _, name = model.name.partition(":")
    if library == "transformers" and name:
        from sft_tune.trial.models_transformers import build

        built = build(task, model, labels, image_size=image_size, pad_id=pad_id, seed=seed)
    elif library in ("torchvision", "timm", "builtin") and name:
        if TASKS[task].input != "image":
            raise ModelError(
                f"model.name: {model.name} reads images, the task is {task}; "
                "give transformers:ID-or-path"
            )
        if TASKS[task].boxes:
            from sft_tune.trial.models_detection import build as build_detector

            built = build_detector(model, len(labels), image_size=image_size, seed=seed)
        elif TASKS[task].masks:
            from sft_tune.trial.models_segmentation import build as build_dense

            built = build_dense(model, len(labels), seed=seed)
        elif library == "timm":
            from sft_tune.trial.models_timm import build as build_timm

            built = build_timm(model, len(labels), image_size=image_size, seed=seed)
        else:
            from sft_tune.trial.models_torchvision import build as build_image_model

            built = build_image_model(model, len(labels), image_size=image_size, seed=seed)
    else:
        raise ModelError(
            f"model.name: {model.name!r} is unknown; give torchvision:NAME, "
            "timm:NAME, transformers:ID-or-path or builtin:convnet"
        )
    facts = TASKS[task]
    built.dense, built.detector, built.writes = facts.masks, facts.boxes, facts.writes
    if normalize is not None:
        built.normalize = (three(normalize.mean, "mean"), three(normalize.std, "std"))
    if built.detector:
        from sft_tune.trial.detectors import set_normalization

        set_normalization(built.module, *map(list, built.normalize))
    return built


def three(values: Sequence[float], name: str = "mean") -> Channels:
    """Return ``values`` per channel; one value stands for all three.

    Raises:
        ModelError: for any other number of values.
    """
    if len(values) not in (1, 3):
        raise ModelError(f"data.normalize.{name}: give 1 or 3 values (got {len(values)})")
    first, second, third = (float(v) for v in (list(values) * 3)[:3])
    return first, second, third


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """Return `` (did you mean x?)`` for the nearest of ``names``, or nothing."""
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def parameter_count(module: nn.Module, trained_only: bool = False) -> int:
    """Return how many parameters ``module`` has, all or only those that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained_only)
