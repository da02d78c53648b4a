from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from sft_tune.errors import StudyFileError
from sft_tune.spec.config import TrialConfig, assemble, default_params
from sft_tune.spec.data import DataSpec
from sft_tune.spec.documents import parse_text
from sft_tune.spec.dump import dump_study, dump_training
from sft_tune.spec.load import parse_study
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.objective import ObjectiveSpec
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.spec.tasks import TASKS, TRAINING_OF_SOME
from sft_tune.spec.techniques import unread
from sft_tune.spec.training import TrainingSpec
from sft_tune.spec.wording import kind, options
from sft_tune.spec.wording import settings as settings_of_a_space

STUDY: dict[str, Any] = {
    "name": "x",
    "task": "image-classification",
    "data": {"source": "sklearn:digits"},
    "budget": {"trials": 1},
}


def values(name: str) -> st.SearchStrategy[Any]:
    """Return values that the setting ``name`` admits."""
    field = settings_of_a_space()[name]
    if options(name):
        return st.sampled_from(options(name))
    absent = st.none() if field.default is None else st.nothing()
    if field.annotation in (bool, bool | None):
        return absent | st.booleans()
    if kind(name) == "integer":
        return absent | st.integers(1, 30)
    return absent | st.floats(1e-12, 0.999) | st.sampled_from([1e-5, 0.1])


# Others are refused for this task, whatever they are: drawing them would only be in vain.
OF_IMAGES = set(TrainingSpec.model_fields) - (
    TRAINING_OF_SOME - set(TASKS["image-classification"].training)
)
trainings = st.fixed_dictionaries({}, optional={name: values(name) for name in sorted(OF_IMAGES)})
weights = st.sampled_from(["DEFAULT", "none", "1e5", "on", "IMAGENET1K_V2", "true", "a: b", "#"])
models = st.builds(
    ModelSpec,
    name=st.just("torchvision:resnet18"),
    weights=weights,
    dropout=values("model.dropout"),
)


loras = st.sampled_from(
    [{}, {"lora_alpha": 3.0}, {"lora_rank": 4, "lora_alpha": 3.0}, {"lora_merge": False}]
)


def problems(root: Path, **sections: Any) -> dict[str, str]:
    try:
        parse_study({**STUDY, **sections}, root=root)
    except StudyFileError as error:
        return {problem.path: problem.rule for problem in error.problems}
    return {}


@settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(trainings, models, loras)
def test_what_a_configuration_ignores_is_refused_in_a_file_and_left_out_of_its_dump(
    tmp_path: Path, training: dict[str, Any], model: ModelSpec, lora: dict[str, Any]
) -> None:
    model = model.model_copy(update=lora)
    if lora:
        model = model.model_copy(update={"name": "transformers:a/b", "weights": "DEFAULT"})
    config = TrialConfig(
        task="image-classification",
        data=DataSpec(source="sklearn:digits"),
        model=model,
        training=TrainingSpec(**training),
        objective=ObjectiveSpec(),
        seed=1,
    )
    written = {"model": model.model_dump(mode="json"), "training": training}
    found = problems(tmp_path, **written)
    in_vain = {path for path, rule in found.items() if rule.startswith("has an effect only with")}
    named = {f"model.{name}": value for name, value in model.model_dump().items()}
    ignored = unread({**config.training.model_dump(), **named})
    kept = {
        "model": model.model_dump(exclude={name.removeprefix("model.") for name in ignored}),
        "training": config.training.model_dump(exclude=ignored),
    }
    places = {name if "." in name else f"training.{name}" for name in ignored}
    set_in_vain = {path for path in places if _differs(config, path)}
    # A rule says nothing of settings that have another problem.
    assert in_vain <= set_in_vain and (set(found) - in_vain or in_vain == set_in_vain)

    sections = parse_text(dump_training(config), ".yaml", "s").data
    assert set(sections["training"]) == set(kept["training"])
    assert set(sections["model"]) == set(kept["model"])
    if set(found) - in_vain:
        reject()  # no trial has it: the loader refuses spaces that could draw it
    spec = parse_study({**STUDY, **sections}, root=tmp_path)
    assert spec.training == TrainingSpec(**kept["training"])
    assert spec.model == ModelSpec(**kept["model"])
    if not in_vain:
        assert assemble(spec, {}, 0).fingerprint() == config.fingerprint()


def _differs(config: TrialConfig, path: str) -> bool:
    section, name = path.split(".")
    spec = getattr(config, section)
    return bool(getattr(spec, name) != type(spec).model_fields[name].default)


def test_a_batch_has_one_size_in_a_dump() -> None:
    config = TrialConfig(
        task="text-classification",
        data=DataSpec(source="x.csv"),
        model=ModelSpec(name="transformers:a/b"),
        training=TrainingSpec(batch_tokens=4096, batch_size=16),
        objective=ObjectiveSpec(),
        seed=1,
    )
    training = parse_text(dump_training(config), ".yaml", "s").data["training"]
    assert training["batch_tokens"] == 4096 and "batch_size" not in training


def test_a_dumped_study_is_one_whose_default_is_the_configuration(tmp_path: Path) -> None:
    config = TrialConfig(
        task="image-classification",
        data=DataSpec(source="sklearn:digits", classes=(1, 2), train_limit=9),
        model=ModelSpec(name="builtin:convnet", weights="none", dropout=0.1),
        training=TrainingSpec(learning_rate=3e-4, schedule="cosine"),
        objective=ObjectiveSpec(metric="f1_macro", rungs=3),
        seed=7,
    )
    resources = ResourcesSpec(devices="cpu", threads_per_trial=1)
    text = dump_study(config, "n" * 130, resources)
    spec = parse_study(parse_text(text, ".yaml", "s").data, root=tmp_path)
    again = assemble(spec, default_params(spec), 0)
    assert again.model_copy(update={"seed": 7}) == config
    assert (len(spec.name), spec.resources, spec.budget.trials) == (120, resources, 1)
