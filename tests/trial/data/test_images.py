from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from sft_tune.errors import DataError
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data.examples import Examples
from sft_tune.trial.data.images import in_order, made_for, read_image


def decoded(value):
    return np.asarray(read_image(Examples([value], ["a"], lambda i: f"place {i}"), 0))


def encoded(image, kind="PNG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def test_every_mode_becomes_rgb():
    grey = Image.fromarray(np.array([[0, 128], [200, 255]], dtype=np.uint8))
    expected = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    for mode in ("L", "RGB", "RGBA", "P", "LA", "CMYK", "YCbCr", "1"):
        picture = decoded(grey.convert(mode))
        assert picture.shape == (2, 2, 3)
        assert picture.dtype == np.uint8
        if mode in ("L", "RGB", "RGBA", "P", "LA", "CMYK"):
            assert np.abs(picture.astype(int) - expected).max() <= 1, mode


def test_16_bit_grey_is_scaled_and_not_clipped():
    deep = Image.fromarray(np.array([[0, 257 * 100], [65535, 257 * 7]], dtype=np.uint16))
    assert decoded(encoded(deep))[:, :, 0].tolist() == [[0, 100], [255, 7]]


def test_a_palette_with_transparency_is_read_without_a_warning():
    picture = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    content = encoded(picture, transparency=bytes(range(0, 250, 10)))
    assert isinstance(Image.open(io.BytesIO(content)).info["transparency"], bytes)
    assert decoded(content).shape == (4, 4, 3)


def test_a_photograph_is_turned_upright():
    picture = Image.fromarray(np.zeros((2, 6, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert decoded(encoded(picture, "JPEG", exif=exif)).shape == (6, 2, 3)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_uint8_arrays_are_images(shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    picture = decoded(array)
    assert picture.shape == (4, 5, 3)
    assert (picture[:, :, 0] == (array if array.ndim == 2 else array[:, :, 0])).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"no image", "cannot identify image file"),
        (encoded(Image.effect_noise((64, 64), 50))[:900], "place 0 cannot be read"),
        (None, "there is none"),
        (3, "a int is no path"),
        (np.zeros((4, 4), dtype=np.float32), "scale it to 0..255"),
        (np.zeros((3, 4, 7), dtype=np.uint8), r"shape \[3, 4, 7\]"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "floating point"),
    ],
    ids=["no image", "torn", "missing", "number", "floats", "channels", "float image"],
)
def test_what_is_no_image_is_refused_with_its_place(value, message):
    with pytest.raises(DataError, match=message) as caught:
        decoded(value)
    assert "place 0" in str(caught.value)


def test_an_unreadable_file_is_named(prepare_images, image_folder):
    (image_folder / "dog" / "104.png").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"dog/104\.png cannot be read"):
        prepare_images(image_folder)


def test_all_unreadable_files_are_told_at_once(prepare_images, image_folder, make):
    make.images(image_folder / "cat", [11], size=(20, 10))  # of another size than the others
    for name in ("cat/000", "cat/007", "dog/100", "dog/101", "dog/102", "dog/109"):
        (image_folder / f"{name}.png").write_bytes(b"torn")
    for settings in ({}, {"image_size": 8}):
        with pytest.raises(DataError) as caught:
            prepare_images(image_folder, **settings)
        told = str(caught.value)
        assert type(caught.value) is DataError
        assert told.startswith("6 images cannot be read: ")
        assert told.count(".png, ") == 4
        assert " and 1 more; the first: cannot identify image file " in told
        assert told.endswith(
            ". Replace them, remove these examples, or leave such out with "
            "data.skip_unreadable: true."
        )


def test_images_of_one_size_keep_it(prepare_images, make, tmp_path):
    for label in "ab":
        make.images(tmp_path / "set" / label, range(5), size=(12, 9))
    data = prepare_images(tmp_path / "set")
    assert data.train.pixels.shape == (8, 3, 9, 12)
    assert data.facts["image_size"] == [9, 12]
    assert data.facts["resized"] == {"train": 0, "validation": 0}


def test_a_given_size_is_that_of_all(prepare_images, image_folder):
    data = prepare_images(image_folder, image_size=16)
    assert data.train.pixels.shape == (16, 3, 16, 16)
    assert data.facts["resized"] == {"train": 16, "validation": 4}
    assert prepare_images(image_folder, image_size=8).facts["resized"]["train"] == 0


def test_images_of_mixed_sizes_are_resized_to_what_the_model_was_made_for(
    prepare_images, image_folder, make, monkeypatch
):
    make.images(image_folder / "cat", [11], size=(20, 10))
    data = prepare_images(image_folder)
    assert data.facts["image_size"] == [224, 224]
    assert data.train.pixels.shape[2:] == (224, 224)
    # The cache knows that sizes are mixed: the second time no image is opened.
    monkeypatch.setattr(Image, "open", None)
    assert (prepare_images(image_folder).train.pixels == data.train.pixels).all()


def test_the_test_images_take_the_size_of_train(prepare_images, make, tmp_path):
    for split, side in (("train", 8), ("test", 10)):
        for label in "ab":
            make.images(tmp_path / split / label, range(5), size=(side, side))
    data = prepare_images(tmp_path, with_test=True)
    assert data.test.pixels.shape == (10, 3, 8, 8)
    assert data.facts["resized"] == {"train": 0, "validation": 0, "test": 10}


def test_shrinking_is_antialiased(prepare_images, make, tmp_path):
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255  # too fine for a side of 8: what is left is grey
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(stripes).save(tmp_path / "set" / label / f"{i}.png")
    pixels = prepare_images(tmp_path / "set", image_size=8).train.pixels
    assert np.abs(pixels.astype(int) - 127).max() < 12


def test_what_a_model_was_made_for(tmp_path):
    def stated(name, weights="none"):
        return made_for(ModelSpec(name=name, weights=weights))

    assert stated("builtin:convnet") == 224
    assert stated("torchvision:resnet18") == 224
    assert stated("torchvision:inception_v3", "DEFAULT") == 299
    assert stated("torchvision:efficientnet_b4", "IMAGENET1K_V1") == 380
    assert stated("torchvision:no_such_model") == 224
    for content, side in (
        ({"image_size": 96}, 96),
        ({"image_size": [64, 64]}, 64),
        ({}, 224),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert stated(f"transformers:{tmp_path}") == side
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 160}}')
    assert stated(f"transformers:{tmp_path}") == 160


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_results_come_in_order_in_threads_or_not(seconds, monkeypatch):
    clock = iter([0.0, seconds])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert list(in_order(lambda part: part * part, range(50))) == [i * i for i in range(50)]


def test_an_error_in_a_thread_comes_out(monkeypatch):
    def fail_at_20(part):
        if part == 20:
            raise DataError("twenty")
        return part

    clock = iter([0.0, 1.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    with pytest.raises(DataError, match="twenty"):
        list(in_order(fail_at_20, range(50)))
