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
    *("label_smoothing", "head_multiplier", "patience", "min_change"),
    # Without effect where only a head is trained, on features.
    *("freeze_batch_norm", "layer_decay", "freeze_blocks", "unfreeze_at", "unfrozen_learning_rate"),
    *("ema_decay", "swa_start", "mix_alpha", "magnitude", "gradient_checkpointing"),
)
"""Settings of training that may differ between the trials of a stack."""

REQUIRED = {
    "freeze": "backbone",
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
"""Settings of training that every trial of a stack has: nothing random stands before the head."""

OWN_OF_MODEL = ("dropout", "head_init")


def stack_key(config: TrialConfig) -> str | None:
    """Return what trials must have in common to be one stack; None: it is trained alone.

    They agree on data, model, batch size and every other setting that is not in `OWN`; the backbone
    is frozen all the way, its features can be kept, and the optimizer is one of `OPTIMIZERS`.
    """
    training, model = config.training, config.model
    if config.task not in TASKS or training.optimizer not in OPTIMIZERS:
        return None
    if any(getattr(training, name) != value for name, value in REQUIRED.items()):
        return None
    if config.data.folds is not None or config.data.fold is not None:
        return None
    # Random backbones are another one for each seed.
    if model.lora_rank is not None or model.weights == "none" or model.reinit_blocks:
        return None
    if training.precision == "fp16":
        return None
    common = {
        "task": config.task,
        "data": config.data.model_dump(mode="json"),
        "model": model.model_dump(mode="json", exclude=set(OWN_OF_MODEL)),
        "training": training.model_dump(mode="json", exclude=set(OWN)),
    }
    return json.dumps(common, sort_keys=True)


def stacks(spec: StudySpec) -> bool:
    """Tell whether any two trials of the study ``spec`` may be in one stack."""
    if is_function(spec.task) or not spec.resources.feature_cache:
        return False
    searched = set(spec.space)
    own = {*OWN, *(f"model.{name}" for name in OWN_OF_MODEL)}
    if not searched <= own:
        return False
    # Trackers other than event files know one run at a time.
    if any(name != "tensorboard" for name in spec.resources.loggers):
        return False
    optimizers = getattr(spec.space.get("optimizer"), "values", OPTIMIZERS)
    if not set(optimizers) <= set(OPTIMIZERS):
        return False
    return stack_key(assemble(spec, default_params(spec), 0)) is not None
