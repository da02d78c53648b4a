"""A trial's configuration as part of a study file."""

from __future__ import annotations

from typing import Any

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.function_task import is_function
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.spec.techniques import unread
from sft_tune.spec.yaml12 import to_yaml


def dump_training(config: TrialConfig) -> str:
    """Return the ``model`` and ``training`` sections that make ``config``, as YAML.

    They are complete but for what the configuration ignores (momentum of adamw, say). In the
    study file of the trial's study, in place of its own ``model`` and ``training`` and without
    its ``space``, they give the same training again (``budget: {trials: 1}`` runs it once).
    """
    if is_function(config.task):
        return to_yaml({"arguments": config.arguments})
    return to_yaml(_settings(config))


def _settings(config: TrialConfig) -> dict[str, dict[str, Any]]:
    """Return the sections of all that ``config`` reads: the loader refuses what is in vain."""
    model = config.model.model_dump(mode="json")
    training = config.training.model_dump(mode="json")
    ignored = unread({**training, **{f"model.{key}": value for key, value in model.items()}})
    return {
        "model": {key: value for key, value in model.items() if f"model.{key}" not in ignored},
        "training": {key: value for key, value in training.items() if key not in ignored},
    }


LONGEST_NAME = 120


def dump_study(config: TrialConfig, name: str, resources: ResourcesSpec) -> str:
    """Return a study file of one trial, whose default configuration is ``config``, as YAML.

    What ``config`` ignores is left out.

    `sft-tune train` trains it; with ``--seed`` and the seed of ``config`` it gives the same
    numbers. Paths are those of ``config``, absolute.

    Args:
        config: the complete configuration.
        name: of the study; cut where it is longer than a name may be.
        resources: what of them is not the default is part of the file.
    """
    sections: dict[str, Any] = {
        "name": name[:LONGEST_NAME],
        "task": config.task,
        "data": config.data.model_dump(mode="json", exclude_defaults=True),
        **_settings(config),
        "objective": config.objective.model_dump(mode="json", exclude_defaults=True),
        "budget": {"trials": 1},
        "resources": resources.model_dump(mode="json", exclude_defaults=True),
    }
    return to_yaml({key: value for key, value in sections.items() if value != {}})
