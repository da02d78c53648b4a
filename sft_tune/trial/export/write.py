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
from sft_tune.spec.tasks import TASKS, Task
from sft_tune.trial import checkpoint, convnet, detectors, models_timm, models_torchvision
from sft_tune.trial.data import AudioSplit, Prepared, TextSplit, prepare
from sft_tune.trial.data.audio import load_extractor
from sft_tune.trial.data.pretrained import pretrained_folder
from sft_tune.trial.device import open_device
from sft_tune.trial.export import loader
from sft_tune.trial.export.measure import compared, example_of, logits_of
from sft_tune.trial.heads import find_output_layers
from sft_tune.trial.load import bare_module, load_checkpoint
from sft_tune.trial.lora import exported, wrapped_layers
from sft_tune.trial.models import BuiltModel, parameter_count
from sft_tune.trial.models_detection import arguments as detector_arguments
from sft_tune.trial.models_detection import epsilon, has_frozen_statistics
from sft_tune.trial.models_language import generation_settings
from sft_tune.trial.models_segmentation import library_arguments as dense_arguments
from sft_tune.trial.models_transformers import size_arguments

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
    if onnx and TASKS[config.task].boxes:
        raise ModelError(
            "--format onnx: a detector answers with as many boxes as it finds, which is not "
            "written as ONNX here; leave --format onnx out"
        )
    if onnx and TASKS[config.task].writes:
        raise ModelError(
            f"a model for {config.task} is not written as ONNX: it writes token by token; export "
            "it without --format onnx"
        )
    where = open_device(device)
    data = prepare(config.task, config.data, config.model, cache=cache)
    module = load_checkpoint(best, device)
    _, header = checkpoint.read(best)
    card = header["card"]
    call = {} if card["model_config"] is None else size_arguments(module, _side(card))
    built = built_model(config.task, module, card["normalize"], card["model_config"], call)
    example = example_of(data.validation, built.normalize, where, compared(config))
    save_file({"logits": logits_of(built, example).cpu().contiguous()}, reference)
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
    task: Task,
    module: nn.Module,
    normalize: Any,
    config: dict[str, Any] | None,
    extra: dict[str, Any],
) -> BuiltModel:
    """Return ``module`` as what evaluates it wants it; nothing of it is to be trained."""
    mean, std = normalize
    built = BuiltModel(module, (), (tuple(mean), tuple(std)), config=config, extra=extra)
    facts = TASKS[task]
    built.dense, built.detector, built.writes = facts.masks, facts.boxes, facts.writes
    return built


def outputs_of(config: TrialConfig) -> str:
    """Return what the outputs are.

    ``classes``, ``labels`` (each yes or no), ``tags`` (of tokens), ``masks``, ``boxes``, ``text``
    or ``number``.
    """
    facts = TASKS[config.task]
    for what, is_so in (("boxes", facts.boxes), ("masks", facts.masks), ("text", facts.writes)):
        if is_so:
            return what
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
        module = bare_module(config, card)
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
    source = config.model.name.partition(":")[2]
    if outputs_of(config) == "text":
        # How the pretrained model writes (what ends a text, ...) is the fine-tuned one's way, too.
        module.generation_config = generation_settings(source, module.config)
    else:
        module.config.problem_type = PROBLEM_TYPES.get(outputs_of(config))
    module.to("cpu").save_pretrained(folder)
    if isinstance(data.train, TextSplit):
        limit = int(data.facts["tokens"]["train"]["limit"])
        # What is written may be longer than what was read in training.
        _write_tokenizer(source, None if outputs_of(config) == "text" else limit, folder)
        return limit
    if isinstance(data.train, AudioSplit):
        load_extractor(pretrained_folder(source)).save_pretrained(str(folder))
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


def _write_tokenizer(source: str, limit: int | None, folder: Path) -> None:
    from sft_tune.trial.data.text import load_tokenizer

    tokenizer = load_tokenizer(pretrained_folder(source))
    if limit is not None:
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
    mean, std = card["normalize"]
    settings = {
        "library": library,
        "name": name,
        **_rebuilding(module, config, card),
        "labels": list(card["labels"]),
        "outputs": outputs_of(config),
        "image_size": card["image_size"],
        "mean": list(mean),
        "std": list(std),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf8")
    tensors = {k: v.detach().to("cpu", copy=True) for k, v in module.state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS)
    shutil.copyfile(_source(loader), folder / "load_model.py")
    if library == "builtin":
        shutil.copyfile(_source(convnet), folder / "convnet.py")
    if TASKS[config.task].boxes:
        shutil.copyfile(_source(detectors), folder / "detectors.py")
    # The script's own network must take the weights: find out here, not at the user's.
    try:
        loader.load_model(folder)
    except (RuntimeError, TypeError, AttributeError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{config.model.name} cannot be rebuilt outside of sft_tune: {first}; load its "
            "best.safetensors by `study.best.load_model()`"
        ) from error


def _rebuilding(module: nn.Module, config: TrialConfig, card: dict[str, Any]) -> dict[str, Any]:
    """Return what the script makes the network of ``module`` from, besides its name."""
    if TASKS[config.task].boxes:
        name = config.model.name.partition(":")[2]
        return {
            "arguments": detector_arguments(name, len(card["labels"]), config.data.image_size),
            "frozen_batch_norm": has_frozen_statistics(config.model),
            "epsilon": epsilon(config.model),
        }
    if TASKS[config.task].masks:
        made_with = dense_arguments(config.model.name, len(card["labels"]))
        return {"arguments": made_with, "head": None, "dropout_before_head": False}
    output = find_output_layers(module)[0]
    # As `heads.replace_head` wraps a layer whose model has no dropout of its own.
    head = output.removesuffix(".output")
    own = module.get_submodule(head)
    wrapped = head != output and isinstance(own, nn.Sequential) and hasattr(own, "dropout")
    timm = config.model.name.startswith("timm:")
    arguments = (models_timm if timm else models_torchvision).library_arguments
    return {
        "arguments": arguments(config.model, _side(card)),
        "head": head if wrapped else output,
        "dropout_before_head": wrapped,
    }


def _source(module: Any) -> Path:
    return Path(str(module.__file__))
