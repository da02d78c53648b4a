"""The real data of ../shared, through the same door as a study's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sft_tune.trial.data import evaluation_batches, gather


@pytest.fixture(scope="module")
def minilm(shared):
    return f"transformers:{shared / 'models' / 'minilm-l6'}"


def test_the_cifar_sample(prepare_images, shared, monkeypatch):
    data = prepare_images(shared / "data" / "cifar10")
    assert data.labels[:2] == ("airplane", "automobile")
    assert data.train.pixels.shape == (4000, 3, 32, 32)
    assert set(data.facts["class_counts"]["validation"].values()) == {100}
    assert data.facts["test_from"] == "source"
    batch = gather(data.train, torch.arange(64), "cpu", augment="flip_crop")
    assert batch.inputs["pixel_values"].shape == (64, 3, 32, 32)
    monkeypatch.setattr("PIL.Image.open", None)
    assert np.array_equal(
        prepare_images(shared / "data" / "cifar10").train.targets, data.train.targets
    )


def test_the_film_reviews(prepare_texts, shared, minilm):
    data = prepare_texts(
        shared / "data" / "movie_reviews", model=minilm, train_limit=100, validation_limit=40
    )
    assert data.labels == ("negative", "positive")
    assert data.train.lengths.max() == 256
    facts = data.facts["tokens"]["train"]
    assert facts["share_cut"] > 0.9
    assert 600 < facts["median"] < 1000
    assert data.train.tokens[:1].tolist() == [101]  # [CLS]
    assert data.train.token_types is None


def test_the_subjectivity_sentences(prepare_texts, shared, minilm):
    data = prepare_texts(
        shared / "data" / "subjectivity", model=minilm, train_limit=500, with_test=True
    )
    assert data.facts["examples"] == {"train": 500, "validation": 1400, "test": 1000}
    assert data.labels == ("objective", "subjective")
    padded = sum(
        len(rows) * int(data.validation.lengths[rows.numpy()].max())
        for rows in evaluation_batches(data.validation, 64)
    )
    assert padded < 1.1 * data.validation.lengths.sum()


def test_the_tokens_are_the_tokenizers_own(prepare_texts, shared, minilm, make):
    from transformers import AutoTokenizer

    path = shared / "data" / "subjectivity" / "test.csv"
    data = prepare_texts(path, model=minilm, max_length=16, validation_fraction=0.1)
    tokenizer = AutoTokenizer.from_pretrained(minilm.partition(":")[2])
    import csv

    with path.open(encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    expected = tokenizer(texts, truncation=True, max_length=16)["input_ids"]
    found = make.texts(data.train) + make.texts(data.validation)
    assert sorted(found) == sorted(expected)
