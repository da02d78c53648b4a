from __future__ import annotations

import numpy as np
import pytest

from sft_tune.errors import DataError

TEXTS = """
calls = []
def pairs(split):
    calls.append(split)
    if split != "train":
        return None
    return [("good film", 1), ("bad film", 0)] * 4

def columns(split):
    return {"text": ["good film", "bad film"] * 4, "label": [1, 0] * 4}

def rows(split):
    for i in range(8):
        yield {"text": "film", "label": i % 2, "more": i}

def fails(split):
    yield "film", 1
    raise OSError("the disk is gone")

def uneven(split):
    return {"text": ["film"], "label": [1, 0]}

def odd(split):
    return [("film", 1), "film"]

def nothing(split):
    return None

def no_validation(split):
    return None if split == "validation" else [("film", i % 2) for i in range(8)]
"""


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "mine.py").write_text(TEXTS)
    return f"python:{tmp_path / 'mine.py'}"


@pytest.mark.parametrize("function", ["columns", "rows", "no_validation", "pairs"])
def test_a_function_may_return_examples_in_several_forms(prepare_texts, texts, function):
    data = prepare_texts(f"{texts}:{function}")
    assert data.labels == ("0", "1")
    own_validation = function in ("columns", "rows")
    assert data.facts["validation_from"] == ("source" if own_validation else "train")
    assert len(data.train) == (8 if own_validation else 6)


def test_a_module_in_the_working_directory_is_found(prepare_texts, tmp_path):
    (tmp_path / "module_of_this_test.py").write_text(TEXTS)
    assert prepare_texts("python:module_of_this_test:pairs").labels == ("0", "1")


def test_the_function_is_called_once_a_split_and_never_for_test(prepare_texts, texts, tmp_path):
    import sys

    for _ in range(3):
        data = prepare_texts(f"{texts}:pairs")
    module = next(m for m in sys.modules.values() if getattr(m, "__file__", "") == texts[7:])
    assert sorted(module.calls) == ["train", "validation"]
    assert data.facts["test_from"] == "unknown"
    assert prepare_texts(f"{texts}:pairs", with_test=True).test is None
    assert prepare_texts(f"{texts}:no_validation", with_test=True).test is not None


def test_other_examples_are_other_data(prepare_texts, texts, tmp_path):
    before = prepare_texts(f"{texts}:pairs")
    (tmp_path / "mine.py").write_text(TEXTS.replace("good film", "good good film"))
    after = prepare_texts(f"{texts}:pairs")
    assert len(after.train.tokens) > len(before.train.tokens)


def test_images_are_pil_arrays_or_paths(prepare_images, make, tmp_path):
    make.images(tmp_path / "files", range(8))
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom pathlib import Path\nfrom PIL import Image\n"
        f"files = sorted(Path({str(tmp_path / 'files')!r}).iterdir())\n"
        "def paths(split):\n    return [(p, i % 2) for i, p in enumerate(files)]\n"
        "def pil(split):\n    return [(Image.open(p), i % 2) for i, p in enumerate(files)]\n"
        "def arrays(split):\n    return [(np.asarray(p), label) for p, label in pil(split)]\n"
    )
    found = [
        prepare_images(f"python:{tmp_path / 'mine.py'}:{name}").train.pixels
        for name in ("paths", "pil", "arrays")
    ]
    assert found[0].shape == (8, 3, 8, 8)
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", r"failed for 'train': OSError: the disk is gone"),
        ("uneven", r"column 'text' has 1 values, 'label' 2"),
        ("odd", r"example 2 is a str \('film'\)"),
        ("nothing", r"returned None for 'train'"),
        ("pears", r"no function 'pears'; did you mean 'pairs'"),
        ("a b", r"write python:module:function"),
    ],
)
def test_a_wrong_function_is_explained(prepare_texts, texts, function, message):
    with pytest.raises(DataError, match=message):
        prepare_texts(f"{texts}:{function}")


@pytest.mark.parametrize("target", ["no_such_module_anywhere", "/no/such/file.py"])
def test_a_module_that_cannot_be_imported_is_explained(prepare_texts, target):
    with pytest.raises(DataError, match=f"importing {target} failed: .*Error: "):
        prepare_texts(f"python:{target}:f")
