"""Which trials may be trained as one stack: the one place that says so."""

from __future__ import annotations

import json

from sft_tune.spec.config import TrialConfig, assemble, default_params
from sft_tune.spec.function_task import is_function
from sft_tune.spec.study import StudySpec

TASKS = ("image-classification", "text-classification")
OPTIMIZERS = ("sgd", "adam", "adamw")
"""Those that are written for rows of weights with settings of their own."""

OWN = (
    *("epochs", "optimizer", "learning_rate", "momentum", "nesterov", "beta1", "beta2", "epsilon"),
    *("weight_decay", "decay_all", "l1", "schedule", "warmup", "min_learning_rate"),
    *("decay_factor", "decay_epochs", "cycles", "power", "cooldown", "clip_norm", "clip_value"),
    *("label_smoothing", "head_multiplier", "layer_decay", "patience", "min_change"),
    # Without effect, because of what is `REQUIRED`.
    *("unfreeze_at", "unfrozen_learning_rate", "ema_decay", "swa_start", "mix_alpha", "magnitude"),
)
"""Settings of training that may differ between the trials of a stack."""

OWN_OF_HEADS = (*OWN, "freeze_batch_norm", "freeze_blocks", "gradient_checkpointing")
"""The same where only a head is trained, on features: these have no effect on it."""

REQUIRED = {
    "averaging": "none",
    "class_weights": "none",
    "focal_gamma": 0.0,
    "r_drop": 0.0,
    "augment": "none",
    "auto_augment": "none",
    "color_jitter": 0.0,
    "erasing": 0.0,
    "token_masking": 0.0,
    "mix": "none",
    "micro_batch": None,
}
"""Settings of training that every trial of a stack has: what a trial alone draws is its own."""

REQUIRED_OF_MODELS = {**REQUIRED, "gradient_checkpointing": False, "batch_tokens": None}
"""The same where more than a head is trained."""

OWN_OF_MODEL = ("head_init",)
OWN_OF_HEADS_MODEL = (*OWN_OF_MODEL, "dropout")


def stack_key(config: TrialConfig) -> str | None:
    """Return what trials must have in common to be one stack; None: it is trained alone.

    They agree on data, model, batch size and every other setting that is not their own. Either
    the backbone is frozen all the way, and its features can be kept; or what is trained of the
    model is the same throughout a trial. The optimizer is one of `OPTIMIZERS`.
    """
    training, model = config.training, config.model
    if config.task not in TASKS or training.optimizer not in OPTIMIZERS:
        return None
    whole = trains_models(config)
    required = REQUIRED_OF_MODELS if whole else REQUIRED
    if any(getattr(training, name) != value for name, value in required.items()):
        return None
    if config.data.folds is not None or config.data.fold is not None:
        return None
    if not whole and not _has_features(config):
        return None
    if whole and training.freeze not in ("none", "blocks"):
        return None
    if training.precision == "fp16":
        return None
    own, own_of_model = _own(whole)
    common = {
        "task": config.task,
        "data": config.data.model_dump(mode="json"),
        "model": model.model_dump(mode="json", exclude=set(own_of_model)),
        "training": training.model_dump(mode="json", exclude=set(own)),
    }
    return json.dumps(common, sort_keys=True)


def trains_models(config: TrialConfig) -> bool:
    """Tell whether a stack of trials like ``config`` is one of models, not of heads on features."""
    return config.training.freeze != "backbone"


def stacks(spec: StudySpec) -> bool:
    """Tell whether any two trials of the study ``spec`` may be in one stack."""
    if is_function(spec.task):
        return False
    # Trackers other than event files know one run at a time.
    if any(name != "tensorboard" for name in spec.resources.loggers):
        return False
    optimizers = getattr(spec.space.get("optimizer"), "values", OPTIMIZERS)
    if not set(optimizers) <= set(OPTIMIZERS):
        return False
    config = assemble(spec, default_params(spec), 0)
    whole = trains_models(config)
    # A stack of models is not compiled.
    if spec.resources.compile if whole else not spec.resources.feature_cache:
        return False
    own, own_of_model = _own(whole)
    if not set(spec.space) <= {*own, *(f"model.{name}" for name in own_of_model)}:
        return False
    return stack_key(config) is not None


def _own(whole: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the settings of training, and of the model, that trials of a stack may differ in."""
    return (OWN, OWN_OF_MODEL) if whole else (OWN_OF_HEADS, OWN_OF_HEADS_MODEL)


def _has_features(config: TrialConfig) -> bool:
    """Tell whether the backbone is the same for every seed."""
    model = config.model
    return model.lora_rank is None and model.weights != "none" and not model.reinit_blocks
