"""Exported files, loaded as their user will load them, and evaluated again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.tasks import TASKS
from sft_tune.trial.data import ImageSplit, Prepared, prepare
from sft_tune.trial.device import is_reduced, open_device
from sft_tune.trial.export.measure import compared, example_of, logits_of, validation_metrics
from sft_tune.trial.export.write import SETTINGS, built_model
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.models_transformers import AUTO_CLASSES


def verify(
    config: TrialConfig,
    folder: Path,
    *,
    reference: Path,
    call: dict[str, Any],
    onnx: bool,
    device: str,
    cache: Path,
    batch_size: int,
) -> dict[str, Any]:
    """Load the files of ``folder`` without the checkpoint, and evaluate the validation split.

    Texts are tokenized anew with the exported tokenizer, sounds made to what the model reads with
    the exported feature extractor; the exported image processor is
    compared with what the trial did to its images.

    Args:
        config: the configuration that was trained.
        folder: what `export` has written.
        reference: the logits that it wrote, of the weights as they were. What is prepared with the
            exported tokenizer or feature extractor is kept beside it, not in ``cache``: nobody
            else has those files where they lie now.
        call: arguments that each forward pass needs.
        onnx: check ``model.onnx`` too.
        device: ``cpu``, or ``cuda:N``.
        cache: folder of prepared data.
        batch_size: examples per batch of evaluation.

    Returns:
        Plain values: ``metrics`` on validation, ``difference`` (the largest of a logit, by the
        largest logit), ``examples`` of validation, ``reduced`` (whether matrix products ran in
        less than single precision), and, with ``onnx``, ``onnx_metrics`` and ``onnx_difference``.

    Raises:
        ModelError: when the files cannot be loaded, or do not do to images what the trial did.
    """
    where = open_device(device)
    built, data = _loaded(config, folder, call, cache, reference.parent)
    example = example_of(data.validation, built.normalize, where, compared(config))
    wanted = load_file(reference)["logits"]
    found = {
        "difference": _difference(logits_of(built, example).cpu(), wanted),
        "metrics": validation_metrics(built, config, data, where, batch_size),
        "examples": len(data.validation),
        "reduced": is_reduced(config.training.precision, where),
    }
    if onnx:
        from sft_tune.trial.export.onnx_format import open_onnx

        cpu = open_device("cpu")
        session = open_onnx(folder, built)
        same = example_of(data.validation, built.normalize, cpu)
        found["onnx_difference"] = _difference(logits_of(session, same), wanted)
        found["onnx_metrics"] = validation_metrics(session, config, data, cpu, batch_size)
    return found


def _loaded(
    config: TrialConfig, folder: Path, call: dict[str, Any], cache: Path, scratch: Path
) -> tuple[BuiltModel, Prepared]:
    """Return the model of ``folder``, and the data as its files say that it is prepared."""
    if config.model.name.partition(":")[0] == "transformers":
        return _loaded_transformers(config, folder, call, cache, scratch)
    data = prepare(config.task, config.data, config.model, cache=cache)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf8"))
    module = _script(folder).load_model()
    normalize = (settings["mean"], settings["std"])
    return built_model(config.task, module, normalize, None, {}), data


def _loaded_transformers(
    config: TrialConfig, folder: Path, call: dict[str, Any], cache: Path, scratch: Path
) -> tuple[BuiltModel, Prepared]:
    import transformers

    module, info = getattr(transformers, AUTO_CLASSES[config.task]).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise ModelError(f"{folder} has {kind.replace('_', ' ')}: {sorted(info[kind])[:3]}")
    model = config.model
    if TASKS[config.task].input != "image":
        # The exported tokenizer or feature extractor in place of the pretrained model's.
        model = model.model_copy(update={"name": f"transformers:{folder}"})
        cache = scratch
    data = prepare(config.task, config.data, model, cache=cache)
    normalize: Any = ((0.5,) * 3, (0.5,) * 3)
    if isinstance(data.train, ImageSplit):
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        normalize = (tuple(processor.image_mean), tuple(processor.image_std))
        _check_processor(processor, data, normalize)
    return built_model(config.task, module, normalize, module.config.to_dict(), call), data


def _check_processor(processor: Any, data: Prepared, normalize: Any) -> None:
    """Raise ModelError unless ``processor`` makes of an image what the trial was given."""
    split = data.validation
    if not isinstance(split, ImageSplit):
        return
    image = np.array(split.pixels[0].transpose(1, 2, 0))  # a copy: prepared arrays are read-only
    made = processor(images=[image], return_tensors="pt")["pixel_values"]
    wanted = example_of(split, normalize, torch.device("cpu"))["pixel_values"][:1]
    if made.shape != wanted.shape or not torch.allclose(made, wanted, atol=1e-5):
        raise ModelError("the exported image processor does not do what the trial did to images")


def _script(folder: Path) -> Any:
    """Return the exported ``load_model.py`` as a module: a file of its own, not the package's."""
    spec = importlib.util.spec_from_file_location("load_model", folder / "load_model.py")
    if spec is None or spec.loader is None:
        raise ModelError(f"load_model.py is not in {folder}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _difference(logits: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, relative to the largest logit (at least 1)."""
    if logits.shape != wanted.shape:
        return float("inf")
    return float((logits - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))
