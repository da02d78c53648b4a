"""Which trials may be trained as one stack: the one place that says so."""

from __future__ import annotations

import json

from sft_tune.spec.config import TrialConfig, assemble, default_params
from sft_tune.spec.features import WITHOUT
from sft_tune.spec.function_task import is_function
from sft_tune.spec.study import StudySpec
from sft_tune.spec.wording import shown

TASKS = ("image-classification", "text-classification")
OPTIMIZERS = ("sgd", "adam", "adamw")
"""Those that are written for rows of weights with settings of their own."""

_ONLY = f"there are stacks of {', '.join(OPTIMIZERS)} alone"

OWN = (
    *("epochs", "batch_size", "optimizer", "learning_rate", "momentum", "nesterov"),
    *("beta1", "beta2", "epsilon"),
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
    **WITHOUT,
    "class_weights": "none",
    "focal_gamma": 0.0,
    "r_drop": 0.0,
    "micro_batch": None,
}
"""Settings of training that every trial of a stack has: what a trial alone draws is its own."""

REQUIRED_OF_MODELS = {**REQUIRED, "gradient_checkpointing": False, "batch_tokens": None}
"""The same where more than a head is trained."""

OWN_OF_MODEL = ("head_init",)
OWN_OF_HEADS_MODEL = (*OWN_OF_MODEL, "dropout")


def stack_key(config: TrialConfig) -> str | None:
    """Return what trials must have in common to be one stack; None: it is trained alone.

    They agree on data, model and every other setting that is not their own. Either the backbone is
    frozen all the way, and its features can be kept; or what is trained of the model is the same
    throughout a trial. The optimizer is one of `OPTIMIZERS`.
    """
    if _why_not(config) is not None:
        return None
    own, own_of_model = _own(trains_models(config))
    common = {
        "task": config.task,
        "data": config.data.model_dump(mode="json"),
        "model": config.model.model_dump(mode="json", exclude=set(own_of_model)),
        "training": config.training.model_dump(mode="json", exclude=set(own)),
    }
    return json.dumps(common, sort_keys=True)


def trains_models(config: TrialConfig) -> bool:
    """Tell whether a stack of trials like ``config`` is one of models, not of heads on features."""
    return config.training.freeze != "backbone"


def why_alone(spec: StudySpec) -> str | None:
    """Return why no two trials of the study ``spec`` may be in one stack; None: they may.

    The first reason that there is, in words, with what would remove it.
    """
    if is_function(spec.task):
        return "a function of yours trains one trial; remove this"
    # Trackers other than event files know one run at a time.
    one_run = [name for name in spec.resources.loggers if name != "tensorboard"]
    if one_run:
        return f"{one_run[0]} (resources.loggers) knows one run at a time; remove one of them"
    optimizers = getattr(spec.space.get("optimizer"), "values", None) or ()
    others = [name for name in optimizers if name not in OPTIMIZERS]
    if others:
        return f"{_ONLY}, and {others[0]} is searched; remove one of them"
    config = assemble(spec, default_params(spec), 0)
    whole = trains_models(config)
    if whole and spec.resources.compile:
        return "a stack of models is not compiled (resources.compile); remove one of them"
    if not whole and not spec.resources.feature_cache:
        return "heads need resources.feature_cache: true; change one of them"
    own, own_of_model = _own(whole)
    common = spec.space.keys() - {*own, *(f"model.{name}" for name in own_of_model)}
    if common:
        return f"they must agree on {min(common)}, which is searched; remove one of them"
    return _why_not(config)


def _why_not(config: TrialConfig) -> str | None:
    """Return why a trial of ``config`` is trained alone; None: it may be in a stack."""
    training, whole = config.training, trains_models(config)
    if config.task not in TASKS or config.data.multi_label:
        kind = "multi_label" if config.data.multi_label else config.task
        return f"there are no stacks of {kind}; remove this"
    if training.optimizer not in OPTIMIZERS:
        return f"{_ONLY}, not {training.optimizer}; change one of them"
    for name, value in (REQUIRED_OF_MODELS if whole else REQUIRED).items():
        if getattr(training, name) != value:
            return f"they need {name}: {shown(value)}; change one of them"
    if config.data.folds is not None or config.data.fold is not None:
        return "folds (data.folds) train one by one; remove one of them"
    if not whole and not _has_features(config):
        return "heads need a backbone that is the same for every seed; remove this"
    if whole and training.freeze not in ("none", "blocks"):
        return f"of {training.freeze} (freeze) the weights that train change; remove one of them"
    if training.precision == "fp16":
        return "they need another precision than fp16; change one of them"
    return None


def _own(whole: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the settings of training, and of the model, that trials of a stack may differ in."""
    return (OWN, OWN_OF_MODEL) if whole else (OWN_OF_HEADS, OWN_OF_HEADS_MODEL)


def _has_features(config: TrialConfig) -> bool:
    """Tell whether the backbone is the same for every seed."""
    model = config.model
    return model.lora_rank is None and model.weights != "none" and not model.reinit_blocks
