from __future__ import annotations

import sys

import pytest

from sft_tune.errors import DataError


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Hugging Face's libraries without a network, with a cache of this test's own."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def write_texts(folder, n=12):
    """A folder as the hub holds it: Parquet whose labels are of a named kind."""
    from datasets import ClassLabel, Dataset, Features, Value

    folder.mkdir(parents=True, exist_ok=True)
    kinds = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos", "none"])})
    for split, count in (("train", n), ("test", 4)):
        columns = {
            "text": ["film " + "very " * i for i in range(count)],
            "label": [i % 2 if split == "train" else -1 for i in range(count)],
        }
        Dataset.from_dict(columns, features=kinds).to_parquet(folder / f"{split}.parquet")
    return folder


def test_names_of_labels_are_used(prepare_texts, tmp_path):
    folder = write_texts(tmp_path / "films")
    data = prepare_texts(f"hub:{folder}")
    assert data.labels == ("neg", "pos")
    assert data.facts["examples"] == {"train": 10, "validation": 2, "test": None}
    assert data.facts["test_from"] == "source"
    with pytest.raises(DataError, match="4 of 4 labels are missing"):
        prepare_texts(f"hub:{folder}", with_test=True)


def test_the_second_time_the_library_is_not_asked(prepare_texts, tmp_path, monkeypatch):
    folder = write_texts(tmp_path / "films")
    first = prepare_texts(f"hub:{folder}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert (prepare_texts(f"hub:{folder}").train.tokens == first.train.tokens).all()


def test_splits_can_be_named_and_sliced(prepare_texts, tmp_path):
    folder = write_texts(tmp_path / "films", n=20)
    data = prepare_texts(f"hub:{folder}", train="train[:50%]", validation="train[50%:]")
    assert data.facts["examples"] == {"train": 10, "validation": 10, "test": None}
    with pytest.raises(DataError, match=r"no split 'tran'; did you mean 'train'\? It has: train"):
        prepare_texts(f"hub:{folder}", train="tran")
    with pytest.raises(DataError, match=r"no column 'review'\. .*Set data\.text_column"):
        prepare_texts(f"hub:{folder}", text_column="review")


def test_images_are_decoded_from_their_bytes(prepare_images, make, tmp_path):
    from datasets import Dataset

    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = [make.picture(value) for value in range(10)]
    made = Dataset.from_dict({"image": pictures, "label": [i % 2 for i in range(10)]})
    made.to_parquet(folder / "train.parquet")
    data = prepare_images(f"hub:{folder}")
    assert data.labels == ("0", "1")
    assert (make.values(data.train) % 2 == data.train.targets).all()


def test_an_id_is_found_in_the_local_cache(prepare_texts, tmp_path):
    from datasets import load_dataset

    folder = write_texts(tmp_path / "films")
    load_dataset(str(folder), cache_dir=str(tmp_path / "datasets"))
    stored = tmp_path / "datasets" / "films"
    stored.rename(tmp_path / "datasets" / "someone___films")
    assert prepare_texts("hub:someone/films").labels == ("neg", "pos")


@pytest.mark.parametrize("source", ["hub:nobody/nothing", "hub:a/b/c"])
def test_a_set_that_cannot_be_had_is_explained(prepare_texts, source):
    with pytest.raises(DataError, match=rf"{source} cannot be loaded: .* Check the id"):
        prepare_texts(source)


def test_a_set_with_a_script_is_refused(prepare_texts, tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match="cannot be loaded"):
        prepare_texts(f"hub:{folder}")
    assert not (tmp_path / "ran").exists()
