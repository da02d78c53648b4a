from __future__ import annotations

import functools
import pickle
import struct

import numpy as np
import pytest

from sft_tune.errors import DataError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # refuses every connection at once
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


def write_mnist(root, n=20):
    """Write a set in MNIST's file format: digit i % 2, its pixels all i."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", n), ("t10k", 6)):
        labels = bytes(i % 2 for i in range(count))
        pixels = b"".join(bytes([i]) * (28 * 28) for i in range(count))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + pixels
        )


def test_mnist_is_read_from_its_files(prepare_images, make, cache):
    write_mnist(cache / "torchvision" / "MNIST")
    data = prepare_images("torchvision:MNIST", with_test=True)
    assert data.labels == ("0 - zero", "1 - one")
    assert data.train.pixels.shape == (16, 3, 28, 28)
    assert (make.values(data.train) % 2 == data.train.targets).all()
    assert make.values(data.test).tolist() == [0, 1, 2, 3, 4, 5]
    assert data.facts["test_from"] == "source"


def test_qmnist_keeps_more_than_labels(prepare_images, make, cache):
    raw = cache / "torchvision" / "QMNIST" / "QMNIST" / "raw"
    raw.mkdir(parents=True)
    facts = b"".join(struct.pack(">8i", i % 2, *range(7)) for i in range(10))
    (raw / "qmnist-train-labels-idx2-int").write_bytes(struct.pack(">III", 0x0C02, 10, 8) + facts)
    pixels = b"".join(bytes([i]) * (28 * 28) for i in range(10))
    header = struct.pack(">IIII", 2051, 10, 28, 28)
    (raw / "qmnist-train-images-idx3-ubyte").write_bytes(header + pixels)
    data = prepare_images("torchvision:QMNIST")
    assert data.labels == ("0 - zero", "1 - one")
    assert (make.values(data.train) % 2 == data.train.targets).all()


def test_cifar10_is_read_from_its_files(prepare_images, make, cache, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = cache / "torchvision" / "CIFAR10" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        pixels = np.repeat(np.arange(4, dtype=np.uint8)[:, None], 3072, axis=1)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 0, 1]}))
    names = ["airplane", "automobile", *(f"class {i}" for i in range(8))]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    # The real files' checksums are not those of this small set; None checks that they exist.
    for attribute in ("train_list", "test_list"):
        files = [[name, None] for name, _ in getattr(CIFAR10, attribute)]
        monkeypatch.setattr(CIFAR10, attribute, files)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    data = prepare_images("torchvision:CIFAR10")
    assert data.labels == ("airplane", "automobile")
    assert len(data.train) + len(data.validation) == 20
    assert data.train.pixels.shape[1:] == (3, 32, 32)


def test_a_set_without_splits_is_split(prepare_images, monkeypatch):
    from torchvision import datasets

    small = functools.partial(datasets.FakeData, size=30, image_size=(3, 8, 8), num_classes=2)
    monkeypatch.setattr(datasets, "FakeData", small)
    data = prepare_images("torchvision:FakeData", test_fraction=0.2, with_test=True)
    assert data.labels == ("0", "1")
    assert data.facts["validation_from"] == data.facts["test_from"] == "train"
    assert data.facts["examples"] == {"train": 19, "validation": 5, "test": 6}


def test_a_failing_download_says_what_was_tried(prepare_images, cache):
    with pytest.raises(DataError, match=r"MNIST is not in .*torchvision/MNIST, .* failed .*put"):
        prepare_images("torchvision:MNIST")


def test_the_second_time_torchvision_is_not_asked(prepare_images, cache, monkeypatch):
    from torchvision import datasets

    write_mnist(cache / "torchvision" / "MNIST")
    first = prepare_images("torchvision:MNIST")
    monkeypatch.setattr(datasets, "MNIST", None)
    assert (prepare_images("torchvision:MNIST").train.targets == first.train.targets).all()


def test_digits_come_with_scikit_learn(prepare_images):
    from sklearn.datasets import load_digits

    data = prepare_images("sklearn:digits", test_fraction=0.1, with_test=True)
    assert data.labels == tuple("0123456789")
    examples = data.facts["examples"]
    assert sum(examples.values()) == 1797
    assert examples["test"] == 180
    splits = (data.train, data.validation, data.test)
    assert all(s.pixels.shape[1:] == (3, 8, 8) for s in splits)
    assert (data.train.pixels[:, 0] == data.train.pixels[:, 2]).all()
    assert max(s.pixels.max() for s in splits) == 255
    ours = np.concatenate([s.pixels[:, 0].reshape(-1, 64) for s in splits])
    theirs = np.round(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))


def test_the_test_part_is_outside_train_and_validation(prepare_images, image_folder, make):
    data = prepare_images(image_folder, test_fraction=0.2, with_test=True)
    found = [make.values(s).tolist() for s in (data.train, data.validation, data.test)]
    assert [len(values) for values in found] == [13, 3, 4]  # a fifth of all, then of the rest
    assert len({value for values in found for value in values}) == 20
    same = prepare_images(image_folder, test_fraction=0.2)
    assert same.facts["examples"] == {"train": 13, "validation": 3, "test": 4}
    assert same.test is None


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("torchvision:CIFR10", {}, r"did you mean 'CIFAR10'\? Known: MNIST"),
        ("torchvison:CIFAR10", {}, "unknown scheme 'torchvison:'; did you mean 'torchvision'"),
        ("sklearn:iris", {}, "Use sklearn:digits"),
        ("sklearn:digits", {"validation": "x"}, r"data\.validation is 'x', but the splits"),
    ],
)
def test_a_wrong_name_is_explained(prepare_images, source, settings, message):
    with pytest.raises(DataError, match=message):
        prepare_images(source, **settings)


def test_images_are_not_for_a_text_task(prepare_texts):
    with pytest.raises(DataError, match=r"holds images, but the task is text-classification"):
        prepare_texts("sklearn:digits")
