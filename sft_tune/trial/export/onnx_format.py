"""A fine-tuned model as ONNX: written by torch, run by ONNX Runtime to check it."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sft_tune.errors import ModelError
from sft_tune.trial.export.measure import Example
from sft_tune.trial.models import BuiltModel

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_installed() -> None:
    """Raise ModelError unless the packages that write and run ONNX are there."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"--format onnx needs packages that are not installed ({', '.join(missing)}); "
            "pip install 'sft_tune[onnx]'"
        )


def write_onnx(built: BuiltModel, example: Example, folder: Path) -> None:
    """Write ``model.onnx`` to ``folder``: any number of examples, texts of any length.

    Inputs have the names that the model has for them, the one output is ``logits`` [b, classes],
    of every pixel [b, classes, h, w].

    Raises:
        ModelError: when a package is missing, or torch cannot export the model.
    """
    check_installed()
    inputs = {name: tensor.cpu() for name, tensor in example.items()}
    built.module.to("cpu").eval()
    batch = torch.export.Dim("batch", min=1)
    axes: dict[str, dict[int, Any]] = {name: {0: batch} for name in inputs}
    if "pixel_values" not in inputs:
        for places in axes.values():
            places[1] = torch.export.Dim.AUTO
    try:
        with warnings.catch_warnings():
            # What torch and the model's library say of their own internals.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Logits(built, tuple(inputs)),
                args=tuple(inputs.values()),
                f=str(folder / FILE),
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes=(tuple(axes.values()),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # of torch's exporter, which raises whatever a model leads it to
        first = str(error).strip().split("\n")[0]
        raise ModelError(
            f"torch cannot export this model to ONNX: {first}; leave --format onnx out"
        ) from error


class _Logits(nn.Module):
    """A model with its inputs in order, since ONNX knows no keywords."""

    def __init__(self, built: BuiltModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = built.module
        self._built = built
        self._names = names

    def forward(self, *tensors: Tensor) -> Tensor:
        return self._built.logits(dict(zip(self._names, tensors, strict=True)))


class _Session(nn.Module):
    """A ``model.onnx`` that is called as the model it was made of."""

    def __init__(self, path: Path, images: bool) -> None:
        super().__init__()
        import onnxruntime

        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._names = [one.name for one in self._session.get_inputs()]
        self._images = images

    def forward(self, pixel_values: Tensor | None = None, **inputs: Tensor) -> Any:
        if pixel_values is not None:
            inputs["pixel_values"] = pixel_values
        feed = {name: inputs[name].numpy() for name in self._names}
        logits = torch.from_numpy(self._session.run(["logits"], feed)[0])
        return logits if self._images else SimpleNamespace(logits=logits)


def open_onnx(folder: Path, built: BuiltModel) -> BuiltModel:
    """Return ``model.onnx`` of ``folder`` in place of ``built``, which was exported with it.

    Its logits of pixels are as large as the images already.
    """
    session = _Session(folder / FILE, images=built.config is None)
    return BuiltModel(session, (), built.normalize, config=built.config)
