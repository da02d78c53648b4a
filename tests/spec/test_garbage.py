"""Whatever a study file holds, the answer is a study or an error that a user can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft_tune.errors import StudyFileError, UserError
from sft_tune.spec.load import load_study, parse_study
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.study import StudySpec
from sft_tune.spec.training import TrainingSpec

SECTIONS = sorted(StudySpec.model_fields)
SETTINGS = [*TrainingSpec.model_fields, *(f"model.{key}" for key in ModelSpec.model_fields)]
KEYS = sorted(
    {
        key
        for field in StudySpec.model_fields.values()
        for key in getattr(field.annotation, "model_fields", ())
    }
)
RANGE_KEYS = ["low", "high", "log", "step", "points", "values", "when"]
SEEN = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, 2, 10, 10**400, -(2**63), 1e-320, 1e308]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["none", "grid", "sgd", "DEFAULT", "builtin:convnet", "sklearn:digits", "x.pt"]
    ),
    st.sampled_from(["~", "~x/y", "sqlite:///", "postgresql://a:b@c", "python:x:y", "a:b"]),
    st.sampled_from(["python:a.py:f", "transformers:./x"]),
)
keys = st.one_of(st.sampled_from([*SECTIONS, *KEYS, *SETTINGS, *RANGE_KEYS]), st.text(max_size=4))
anything = st.recursive(
    scalars | st.dates() | st.binary(max_size=3) | st.just(Path("x")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys | st.integers() | st.none(), inner, max_size=4)
        | st.tuples(inner)
    ),
    max_leaves=12,
)
ranges = st.dictionaries(st.sampled_from(RANGE_KEYS), scalars | st.lists(scalars, max_size=3))
conditions = st.dictionaries(st.sampled_from(SETTINGS), scalars | st.lists(scalars, max_size=2))
parameters = st.one_of(
    st.lists(scalars, max_size=4),
    ranges,
    st.fixed_dictionaries({"values": st.lists(scalars, max_size=3), "when": conditions}),
    st.fixed_dictionaries(
        {"low": st.floats(0, 1), "high": st.floats(1, 2)},
        optional={"step": scalars, "log": st.booleans()},
    ),
    anything,
)


def sections(name: str) -> st.SearchStrategy[Any]:
    model: Any = StudySpec.model_fields[name].annotation
    if name == "space":
        return st.dictionaries(st.sampled_from(SETTINGS), parameters, max_size=5) | anything
    if name == "sampler":
        cells = st.lists(
            st.dictionaries(st.sampled_from(SETTINGS), scalars, max_size=3), max_size=3
        )
        return st.fixed_dictionaries({"name": st.sampled_from(["grid", "tpe"]), "enqueue": cells})
    if not hasattr(model, "model_fields"):
        return scalars
    known = st.sampled_from(sorted(model.model_fields))
    return st.dictionaries(known, scalars | anything, max_size=5) | anything


studies = st.fixed_dictionaries({}, optional={name: sections(name) for name in SECTIONS})
nearly = studies.map(
    lambda study: (
        {
            "name": "x",
            "task": "image-classification",
            "data": {"source": "sklearn:digits"},
            "model": {"name": "builtin:convnet", "weights": "none"},
        }
        | study
    )
)


def accepts(data: Any, root: Path) -> None:
    """Parse ``data``; any error but the user's own fails the test."""
    try:
        assert isinstance(parse_study(data, root=root), StudySpec)
    except UserError as error:
        text = str(error)
        assert text and "pydantic" not in text and "Traceback" not in text
        if isinstance(error, StudyFileError):
            assert error.problems
            assert all(problem.path and problem.rule for problem in error.problems)


@SEEN
@given(anything)
def test_any_value_is_a_study_or_a_readable_error(tmp_path: Path, data: Any) -> None:
    accepts(data, tmp_path)


@SEEN
@given(studies | nearly)
def test_any_sections_are_a_study_or_a_readable_error(tmp_path: Path, data: Any) -> None:
    accepts(data, tmp_path)


@SEEN
@given(nearly, st.sampled_from([".yaml", ".json"]))
def test_any_written_study_is_a_study_or_a_readable_error(
    tmp_path: Path, data: Any, suffix: str
) -> None:
    path = tmp_path / f"study{suffix}"
    try:
        text = yaml.safe_dump(data) if suffix == ".yaml" else json.dumps(data)
    except (TypeError, ValueError, yaml.YAMLError):
        return
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_study(path)
    except UserError as error:
        assert str(error)


@SEEN
@given(st.text(), st.sampled_from([".yaml", ".json", ".toml"]))
def test_any_text_is_a_study_or_a_readable_error(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"study{suffix}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_study(path)
    except UserError as error:
        assert str(error)
