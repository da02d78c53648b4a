"""A trial's configuration as part of a study file."""

from __future__ import annotations

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.function_task import is_function
from sft_tune.spec.yaml12 import to_yaml


def dump_training(config: TrialConfig) -> str:
    """Return the ``model`` and ``training`` sections that make ``config``, complete, as YAML.

    In the study file of the trial's study, in place of its own ``model`` and ``training`` and
    without its ``space``, they give the same configuration again (``budget: {trials: 1}`` runs
    it once).
    """
    if is_function(config.task):
        return to_yaml({"arguments": config.arguments})
    return to_yaml(
        {
            "model": config.model.model_dump(mode="json"),
            "training": config.training.model_dump(mode="json"),
        }
    )
