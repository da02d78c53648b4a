"""Models for texts and images of transformers, from a local folder or the Hugging Face hub."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sft_tune.errors import MissingModelError, ModelError
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.tasks import TASKS, Task
from sft_tune.trial.heads import find_output_layer, in_head
from sft_tune.trial.models import HALF, BuiltModel, Normalize, three
from sft_tune.trial.models_language import check_causal, generation_settings
from sft_tune.trial.weights import Misfit, Stamp, file_stamp, is_path, read_state

AUTO_CLASSES = {
    "audio-classification": "AutoModelForAudioClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "token-classification": "AutoModelForTokenClassification",
    "semantic-segmentation": "AutoModelForSemanticSegmentation",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    # A classifier with one output: the loss is not the library's.
    "text-regression": "AutoModelForSequenceClassification",
    "image-regression": "AutoModelForImageClassification",
}
# What the configurations of transformers call dropout in hidden layers and before the head.
DROPOUTS = (
    "hidden_dropout_prob",
    "hidden_dropout",
    "dropout",
    "resid_pdrop",
    "embd_pdrop",
    "dropout_rate",
    "classifier_dropout",
    "classifier_dropout_prob",
    "classifier_dropout_rate",
    "seq_classif_dropout",
    "summary_first_dropout",
    "summary_last_dropout",
    "pooler_dropout",
    "cls_dropout",
)
# Checkpoints of masked language models lack it: it is drawn anew, and trained with the head.
POOLER = "pooler"
# What stands between encoder and output layer in audio classifiers without a base model (Whisper).
PROJECTOR = "projector"
KEPT_MODELS = 2


@dataclass(frozen=True)
class Pretrained:
    """What is kept of a checkpoint between trials: all but its head.

    Attributes:
        config: of transformers.
        kind: the class of the module.
        state: tensors of the backbone.
        poolers: names of backbone modules that the checkpoint lacks.
    """

    config: Any
    kind: Any
    state: dict[str, Tensor]
    poolers: tuple[str, ...]


def build(
    task: Task,
    model: ModelSpec,
    labels: Sequence[str],
    *,
    image_size: int | None,
    pad_id: int | None,
    seed: int,
) -> BuiltModel:
    """Return the transformers model of ``model`` with a new head for ``labels``.

    Raises:
        ModelError: for a model or weights that are unknown, cannot be had, or do not fit.
    """
    source = model.name.partition(":")[2]
    writes = TASKS[task].writes
    # The stand-in for a missing pad is a token with a meaning; named as pad it would not be learnt.
    pad_id = None if task == "causal-lm" else pad_id
    weights = _weights_path(model)
    poolers: tuple[str, ...] = ()
    with _quiet(), _user_errors(model.name, task):
        if model.weights == "none":
            config = _configured(_config(source), model, labels, pad_id)
            torch.manual_seed(seed)
            module = _auto_class(task).from_config(config, dtype=torch.float32)
        else:
            kept = _pretrained(task, source, weights, file_stamp(weights) if weights else None)
            poolers = kept.poolers
            config = _configured(copy.deepcopy(kept.config), model, labels, pad_id)
            # The tensors become the module's own: training must not reach what is kept.
            state = {name: tensor.clone() for name, tensor in kept.state.items()}
            torch.manual_seed(seed)
            module = kept.kind.from_pretrained(
                None, config=config, state_dict=state, dtype=torch.float32
            )
    if task == "causal-lm":
        check_causal(module, model.name)
    elif writes:
        module.generation_config = generation_settings(source, config)
    head = () if writes else (*find_head(module), *poolers)
    normalize = image_normalization(source) if TASKS[task].input == "image" else (HALF, HALF)
    extra = {"use_cache": False} if writes else size_arguments(module, image_size)
    return BuiltModel(module, head, normalize, config=_as_json(config), extra=extra)


def skeleton(task: Task, config: dict[str, Any]) -> nn.Module:
    """Return the module that ``config`` (of `BuiltModel`) describes, with random weights."""
    from transformers import AutoConfig

    settings = {key: value for key, value in config.items() if key != "model_type"}
    with _quiet():
        described = AutoConfig.for_model(config["model_type"], **settings)
        module: nn.Module = _auto_class(task).from_config(described, dtype=torch.float32)
    return module


def find_head(module: Any) -> tuple[str, ...]:
    """Return the names of the head's modules: all that stand beside the base model.

    A model whose head is within its base has its output layer as the head, after a projector.
    """
    base = getattr(module, "base_model_prefix", "")
    if base and hasattr(module, base):
        beside = [name for name, _ in module.named_children() if name != base]
        if any(True for name in beside for _ in module.get_submodule(name).parameters()):
            return tuple(beside)
    projector = (PROJECTOR,) if hasattr(module, PROJECTOR) else ()
    return (*projector, find_output_layer(module))


def image_normalization(source: str) -> Normalize:
    """Return mean and deviation of the model's image processor; 0.5 where it has none."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        with _quiet():
            settings, _ = BaseImageProcessor.get_image_processor_dict(source)
    except OSError:
        return HALF, HALF
    mean, std = settings.get("image_mean"), settings.get("image_std")
    return (three(mean), three(std)) if mean and std else (HALF, HALF)


@lru_cache(maxsize=KEPT_MODELS)
def _pretrained(task: Task, source: str, weights: Path | None, stamp: Stamp | None) -> Pretrained:
    """Return the checkpoint of ``source`` (or of the file ``weights``) without its head."""
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "output_loading_info": True,
        # The head is left out below; other tensors of another shape are an error there.
        "ignore_mismatched_sizes": True,
    }
    if weights is None:
        module, info = _auto_class(task).from_pretrained(
            source, trust_remote_code=False, weights_only=True, **options
        )
    else:
        config = _config(source)
        kind = type(_auto_class(task).from_config(config))
        module, info = kind.from_pretrained(
            None, config=config, state_dict=read_state(weights), **options
        )
    head = () if TASKS[task].writes else find_head(module)
    lacking = [name for name in info["missing_keys"] if f".{POOLER}." in name]
    poolers = tuple(sorted({name.partition(f".{POOLER}.")[0] + f".{POOLER}" for name in lacking}))
    fresh = (*head, *poolers)
    misfit = Misfit(
        missing=sorted(key for key in info["missing_keys"] if not in_head(key, fresh)),
        # Heads of other tasks, which checkpoints have by design.
        unexpected=[],
        reshaped=sorted(
            f"{key}: file {tuple(file)}, model {tuple(own)}"
            for key, file, own in info["mismatched_keys"]
            if not in_head(key, fresh)
        ),
    )
    if misfit:
        raise misfit.error(str(weights or source), f"a {type(module).__name__}")
    state = {key: v for key, v in module.state_dict().items() if not in_head(key, fresh)}
    return Pretrained(module.config, type(module), state, poolers)


def _configured(config: Any, model: ModelSpec, labels: Sequence[str], pad_id: int | None) -> Any:
    """Set labels, dropout and padding of ``config``, and return it."""
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    if model.dropout is not None:
        known = [key for key in DROPOUTS if hasattr(config, key)]
        if not known:
            raise ModelError(
                f"model.dropout: {model.name} ({config.model_type}) has no dropout to set; "
                "leave model.dropout out"
            )
        for key in known:
            setattr(config, key, model.dropout)
    if model.stochastic_depth is not None:
        if not hasattr(config, "drop_path_rate"):
            raise ModelError(
                f"model.stochastic_depth: {model.name} ({config.model_type}) has no stochastic "
                "depth to set; leave it out"
            )
        config.drop_path_rate = model.stochastic_depth
    if pad_id is not None and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = pad_id
    return config


def _config(source: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source, trust_remote_code=False)


def _auto_class(task: Task) -> Any:
    import transformers

    return getattr(transformers, AUTO_CLASSES[task])


def _weights_path(model: ModelSpec) -> Path | None:
    """Return the file of weights that ``model`` names, None for the model's own.

    Raises:
        ModelError: for a name; transformers models have one set of weights.
    """
    if model.weights in ("DEFAULT", "none"):
        return None
    if not is_path(model.weights):
        raise ModelError(
            f"model.weights: {model.name} has no weights {model.weights!r}; "
            "give DEFAULT, the path of a state dict, or none"
        )
    return Path(model.weights)


def size_arguments(module: Any, image_size: int | None) -> dict[str, Any]:
    """Return what the forward pass needs for images of another size than the model's own."""
    own = getattr(module.config, "image_size", None)
    if image_size is None or own is None or own in (image_size, [image_size] * 2):
        return {}
    takes = "interpolate_pos_encoding" in inspect.signature(module.forward).parameters
    return {"interpolate_pos_encoding": True} if takes else {}


def _as_json(config: Any) -> dict[str, Any]:
    """Return ``config`` as plain values, with its model type."""
    settings: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {**settings, "model_type": config.model_type}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing that the head is new, and progress bars."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _user_errors(name: str, task: Task) -> Iterator[None]:
    """Turn what transformers says of a model that cannot be had into a ModelError."""
    source = name.partition(":")[2]
    if source.startswith((".", "/", "~")) and not Path(source).is_dir():
        raise MissingModelError(
            f"model.name: no folder {source}; give a model's folder or its hub id"
        )
    try:
        yield
    except OSError as error:
        first = str(error).strip().split("\n")[0]
        raise MissingModelError(
            f"model.name: {source!r} is no folder here and cannot be had from the hub: {first} "
            "Check the id and the network, or give the path of a local folder"
        ) from error
    except (ValueError, ImportError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(f"model.name: {source!r} is no model for {task}: {first}") from error
