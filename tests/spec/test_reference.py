from __future__ import annotations

from sft_tune.spec.reference import reference_markdown
from sft_tune.spec.study import StudySpec
from sft_tune.spec.training import TrainingSpec


def rows() -> dict[str, list[str]]:
    """The cells of each key's row (the last one where two sections share a key)."""
    lines = [line for line in reference_markdown().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_section_has_a_table_and_every_key_a_row() -> None:
    text = reference_markdown()
    for name, field in StudySpec.model_fields.items():
        assert (
            f"### `{name}`" if name not in ("name", "task", "seed", "arguments") else f"| `{name}` "
        ) in text
        assert field.description is not None and field.description in text
    assert set(TrainingSpec.model_fields) <= set(rows())
    assert {"normalize.mean", "low", "when", "evaluation_batch_size"} <= set(rows())


def test_a_row_says_type_range_default_and_meaning() -> None:
    table = rows()
    assert table["warmup"] == [
        "a number, at least 0 and below 1",
        "`0.1`",
        "Share of the trial's steps in which the rate rises linearly.",
    ]
    assert table["optimizer"][:2] == [
        "one of adamw, adam, sgd, adafactor, lion, muon",
        "`adamw`",
    ]
    assert table["clip_norm"][:2] == ["a number or null, above 0", "`1`"]
    assert table["source"][:2] == ["text", "required"]
    assert table["image_size"][:2] == ["a whole number, at least 8 and at most 4096", ""]
    assert table["classes"][0] == "a list of texts or whole numbers"
    assert table["devices"][:2] == ["one of auto, cpu or a list of whole numbers", "`auto`"]
    assert table["enqueue"][:2] == ["a list of mappings of settings", "`[]`"]
    assert table["log"][:2] == ["true or false", "`false`"]


def test_every_row_has_as_many_cells_as_the_heading() -> None:
    for line in reference_markdown().splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == 5, line
