"""A trial's checkpoint written in its library's own format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.tasks import TASKS
from sft_tune.trial import checkpoint, convnet, models_timm, models_torchvision
from sft_tune.trial.data import AudioSplit, Prepared, TextSplit, prepare
from sft_tune.trial.data.audio import load_extractor
from sft_tune.trial.data.pretrained import pretrained_folder
from sft_tune.trial.device import open_device
from sft_tune.trial.export import loader
from sft_tune.trial.export.measure import example_of, logits_of
from sft_tune.trial.heads import find_output_layers
from sft_tune.trial.load import load_checkpoint
from sft_tune.trial.lora import exported, wrapped_layers
from sft_tune.trial.models import BuiltModel, parameter_count
from sft_tune.trial.models_transformers import size_arguments, skeleton

SETTINGS = "model.json"
WEIGHTS = "model.safetensors"
# By which pipelines of transformers choose between softmax, sigmoid and neither.
PROBLEM_TYPES = {
    "classes": "single_label_classification",
    "labels": "multi_label_classification",
    "number": "regression",
}


def export(
    config: TrialConfig,
    best: Path,
    folder: Path,
    *,
    reference: Path,
    onnx: bool,
    device: str,
    cache: Path,
) -> dict[str, Any]:
    """Write the weights of the checkpoint ``best`` to ``folder``, in their library's own format.

    Args:
        config: the configuration that was trained, with the paths of this machine.
        best: a checkpoint that `write_best` wrote.
        folder: an empty folder.
        reference: where the logits of some validation examples go, to compare others with.
        onnx: write ``model.onnx`` too.
        device: ``cpu``, or ``cuda:N``.
        cache: folder of prepared data.

    Returns:
        Plain values: ``library``, ``outputs`` (see `outputs_of`), ``labels``, ``parameters``,
        ``image_size`` [h, w] or None, ``max_length`` in tokens or None, ``call`` (arguments that
        each forward pass needs), and ``data`` (the facts of `Prepared`).

    Raises:
        DataError: when the data is not what the configuration says.
        ModelError: when the checkpoint is missing, damaged, or cannot be written so.
    """
    if TASKS[config.task].masks:
        raise ModelError(
            f"a model for {config.task} is not exported; load its best.safetensors by "
            "`study.best.load_model()`"
        )
    where = open_device(device)
    data = prepare(config.task, config.data, config.model, cache=cache)
    module = load_checkpoint(best, device)
    _, header = checkpoint.read(best)
    card = header["card"]
    call = {} if card["model_config"] is None else size_arguments(module, _side(card))
    built = built_model(module, card["normalize"], card["model_config"], call)
    example = example_of(data.validation, built.normalize, where)
    save_file({"logits": logits_of(built, example).cpu()}, reference)
    built.module = module = plain(module, config, card)
    facts: dict[str, Any] = {
        "library": config.model.name.partition(":")[0],
        "outputs": outputs_of(config),
        "labels": list(card["labels"]),
        "parameters": parameter_count(module),
        "image_size": card["image_size"],
        "max_length": None,
        "call": call,
        "data": data.facts,
    }
    if card["model_config"] is not None:
        facts["max_length"] = _write_transformers(module, config, card, data, folder)
    else:
        _write_image_model(module, config, card, folder)
    if onnx:
        from sft_tune.trial.export.onnx_format import write_onnx

        write_onnx(built, example, folder)
    _readable(folder)
    return facts


def _readable(folder: Path) -> None:
    """Give every file the permissions of a new one: some writers keep theirs to the owner."""
    new = folder / "new"
    new.touch()
    for path in folder.iterdir():
        shutil.copymode(new, path)
    new.unlink()


def built_model(
    module: nn.Module, normalize: Any, config: dict[str, Any] | None, extra: dict[str, Any]
) -> BuiltModel:
    """Return ``module`` as what evaluates it wants it; nothing of it is to be trained."""
    mean, std = normalize
    return BuiltModel(module, (), (tuple(mean), tuple(std)), config=config, extra=extra)


def outputs_of(config: TrialConfig) -> str:
    """Return what the outputs are.

    ``classes``, ``labels`` (each yes or no), ``tags`` (of tokens) or ``number``.
    """
    if config.task.endswith("regression"):
        return "number"
    if config.task == "token-classification":
        return "tags"
    return "labels" if config.data.multi_label else "classes"


def plain(module: nn.Module, config: TrialConfig, card: dict[str, Any]) -> nn.Module:
    """Return ``module``, of `load_checkpoint`, as its library knows it.

    The updates of LoRA are merged into the weights, and the units of a regression's targets into
    the output layer.

    Raises:
        ModelError: when the output layer has no bias for that.
    """
    if wrapped_layers(module.state_dict()):
        merged = exported(module, config.model.model_copy(update={"lora_merge": True}))
        hooks = module._forward_hooks
        device = next(module.parameters()).device
        module = skeleton(config.task, card["model_config"])
        module.load_state_dict(merged)
        module.to(device).eval()._forward_hooks = hooks
    stats = card.get("stats") or {}
    if "deviation" in stats:
        for name in find_output_layers(module):
            _scale(module.get_submodule(name), name, config, stats)
        module._forward_hooks.clear()
    return module


def _scale(layer: Any, name: str, config: TrialConfig, stats: dict[str, Any]) -> None:
    """Let ``layer`` answer in the units of the targets."""
    if getattr(layer, "bias", None) is None:
        raise ModelError(
            f"{config.model.name}: its output layer {name} has no bias to take the units of "
            "the targets; load its best.safetensors by `study.best.load_model()`"
        )
    with torch.no_grad():
        layer.weight.mul_(stats["deviation"])
        layer.bias.mul_(stats["deviation"]).add_(stats["mean"])


def _side(card: dict[str, Any]) -> int | None:
    """Return the side of the images where they are square."""
    size = card["image_size"]
    return size[0] if size is not None and size[0] == size[1] else None


def _write_transformers(
    module: Any, config: TrialConfig, card: dict[str, Any], data: Prepared, folder: Path
) -> int | None:
    """Write weights, configuration and what makes inputs: of texts, images or sounds.

    Returns:
        How many tokens the tokenizer cuts texts to; None for images and sounds.
    """
    module.config.problem_type = PROBLEM_TYPES.get(outputs_of(config))
    module.to("cpu").save_pretrained(folder)
    if isinstance(data.train, TextSplit):
        limit = int(data.facts["tokens"]["train"]["limit"])
        _write_tokenizer(config.model.name.partition(":")[2], limit, folder)
        return limit
    if isinstance(data.train, AudioSplit):
        source = pretrained_folder(config.model.name.partition(":")[2])
        load_extractor(source).save_pretrained(str(folder))
        return None
    from transformers import ViTImageProcessor

    height, width = card["image_size"]
    mean, std = card["normalize"]
    # What the trial did to its images, whatever the pretrained model's own processor does.
    processor = ViTImageProcessor(
        do_resize=True,
        size={"height": height, "width": width},
        resample=3,  # bicubic, as `sft_tune.trial.data.images`
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=True,
    )
    processor.save_pretrained(folder)
    return None


def _write_tokenizer(source: str, limit: int, folder: Path) -> None:
    from sft_tune.trial.data.text import load_tokenizer

    tokenizer = load_tokenizer(pretrained_folder(source))
    # So that `truncation=True` cuts where the trial did.
    tokenizer.model_max_length = limit
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(str(folder))


def _write_image_model(
    module: nn.Module, config: TrialConfig, card: dict[str, Any], folder: Path
) -> None:
    """Write weights, what rebuilds the network around them, and the script that does it."""
    library, _, name = config.model.name.partition(":")
    output = find_output_layers(module)[0]
    # As `heads.replace_head` wraps a layer whose model has no dropout of its own.
    head = output.removesuffix(".output")
    own = module.get_submodule(head)
    wrapped = head != output and isinstance(own, nn.Sequential) and hasattr(own, "dropout")
    mean, std = card["normalize"]
    arguments = (models_timm if library == "timm" else models_torchvision).library_arguments
    settings = {
        "library": library,
        "name": name,
        "arguments": arguments(config.model, _side(card)),
        "head": head if wrapped else output,
        "dropout_before_head": wrapped,
        "labels": list(card["labels"]),
        "outputs": outputs_of(config),
        "image_size": list(card["image_size"]),
        "mean": list(mean),
        "std": list(std),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf8")
    tensors = {k: v.detach().to("cpu", copy=True) for k, v in module.state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS)
    shutil.copyfile(_source(loader), folder / "load_model.py")
    if library == "builtin":
        shutil.copyfile(_source(convnet), folder / "convnet.py")
    # The script's own network must take the weights: find out here, not at the user's.
    try:
        loader.load_model(folder)
    except (RuntimeError, TypeError, AttributeError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{config.model.name} cannot be rebuilt outside of sft_tune: {first}; load its "
            "best.safetensors by `study.best.load_model()`"
        ) from error


def _source(module: Any) -> Path:
    return Path(str(module.__file__))
