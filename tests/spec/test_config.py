from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from sft_tune.spec.config import TrialConfig, assemble, default_params, setting, trial_seed
from sft_tune.spec.objective import ObjectiveSpec, resolve_direction
from sft_tune.spec.study import StudySpec

Parse = Callable[..., StudySpec]

CONDITIONAL = {
    "schedule": ["linear", "exponential"],
    "decay_factor": {"values": [0.5, 0.7], "when": {"schedule": "exponential"}},
    "model.dropout": [0.1, 0.3],
}


def test_the_default_point_takes_the_fixed_settings_or_the_nearest(parse: Parse) -> None:
    spec = parse(space={"epochs": [5, 10], "batch_size": {"low": 8, "high": 64}})
    assert default_params(spec) == {"learning_rate": 1e-4, "epochs": 5, "batch_size": 32}


def test_the_default_point_leaves_inactive_parameters_out(parse: Parse) -> None:
    spec = parse(space=CONDITIONAL)
    assert default_params(spec) == {
        "learning_rate": 1e-4,
        "schedule": "linear",
        "model.dropout": 0.1,
    }
    changed = default_params(spec, {"schedule": "exponential"})
    assert changed["decay_factor"] == 0.7  # the nearest to 0.9


def test_a_configuration_holds_what_is_searched_and_what_is_not(parse: Parse) -> None:
    spec = parse(space=CONDITIONAL, training={"batch_size": 64})
    config = assemble(spec, {"learning_rate": 1e-3, "model.dropout": 0.3}, 7)
    assert (config.training.learning_rate, config.training.batch_size) == (1e-3, 64)
    assert config.training.decay_factor == setting(spec, "decay_factor") == 0.9
    assert config.model.dropout == 0.3
    assert config.seed == trial_seed(spec.seed, 7)


def test_a_value_that_a_setting_does_not_admit_is_refused(parse: Parse) -> None:
    with pytest.raises(ValidationError):
        assemble(parse(), {"learning_rate": -1.0}, 0)


def test_the_fingerprint_tells_configurations_apart_but_not_seeds(parse: Parse) -> None:
    spec = parse()
    one, again, other = (
        assemble(spec, {"learning_rate": rate}, number)
        for rate, number in ((1e-3, 0), (1e-3, 1), (2e-3, 0))
    )
    assert one.seed != again.seed
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
    assert TrialConfig.model_validate_json(one.model_dump_json()).fingerprint() == one.fingerprint()


def test_seeds_of_trials_are_fixed_and_differ() -> None:
    seeds = {trial_seed(study, number) for study in range(5) for number in range(200)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert trial_seed(0, 0) == 713683445


@pytest.mark.parametrize(
    ("objective", "direction"),
    [
        (ObjectiveSpec(metric="accuracy"), "maximize"),
        (ObjectiveSpec(metric="loss"), "minimize"),
        (ObjectiveSpec(metric="loss", direction="maximize"), "maximize"),
    ],
)
def test_losses_are_minimized_and_scores_maximized(
    objective: ObjectiveSpec, direction: str
) -> None:
    assert resolve_direction(objective) == direction


OLD = """{"task":"image-classification","data":{"source":"sklearn:digits","train":null,"validation":
null,"test":null,"subset":null,"text_column":"text","image_column":"image","label_column":"label",
"classes":null,"validation_fraction":0.2,"test_fraction":0.0,"split_seed":0,"train_limit":null,
"validation_limit":null,"test_limit":null,"image_size":null,"normalize":null,"max_length":256},
"model":{"name":"builtin:convnet","weights":"none","dropout":null},"training":{"epochs":3,
"batch_size":32,"optimizer":"sgd","learning_rate":0.0001,"momentum":0.9,"weight_decay":0.01,
"schedule":"linear","warmup":0.1,"min_learning_rate":0.0,"decay_factor":0.9,"clip_norm":1.0,
"label_smoothing":0.0,"freeze":"none","head_multiplier":1.0,"augment":"none","precision":"auto"},
"objective":{"metric":"accuracy","direction":"auto","rungs":10},"seed":3}"""


def test_a_configuration_of_the_first_version_keeps_its_fingerprint() -> None:
    old = TrialConfig.model_validate_json(OLD)
    assert old.fingerprint() == "75fca02326e439bf6f7a499e977d3be9"
    assert TrialConfig.model_validate(old.model_dump()).fingerprint() == old.fingerprint()
    newer = old.training.model_copy(update={"nesterov": True})
    assert old.model_copy(update={"training": newer}).fingerprint() != old.fingerprint()
