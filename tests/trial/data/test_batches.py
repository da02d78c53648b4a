from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft_tune.trial.data import ImageSplit, TextSplit, epoch_order, evaluation_batches, gather
from sft_tune.trial.data.batches import augmented, normalized


def images(n=10, h=8, w=8):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 3, h, w), dtype=np.uint8)
    return ImageSplit(pixels, np.arange(n) % 3)


def texts(lengths, **settings):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return TextSplit(tokens, offsets, np.arange(len(lengths)) % 2, pad_id=0, **settings)


@given(st.integers(0, 200), st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_an_epochs_order_is_a_permutation_and_pure(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    state = torch.get_rng_state()
    torch.rand(3)
    assert torch.equal(order, epoch_order(n, seed, epoch))
    torch.set_rng_state(state)


def test_epochs_and_seeds_have_other_orders_and_draw_nothing():
    state = torch.get_rng_state()
    orders = {tuple(epoch_order(20, s, e).tolist()) for s in range(4) for e in range(4)}
    assert len(orders) == 16
    assert torch.equal(state, torch.get_rng_state())


def test_an_image_batch_is_normalized():
    split = images()
    batch = gather(split, torch.tensor([7, 2]), "cpu", normalize=((0.1, 0.2, 0.3), (0.5, 1, 2)))
    pixels = batch.inputs["pixel_values"]
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 1, 2])
    exact = (split.pixels[[7, 2]] / 255 - mean[:, None, None]) / std[:, None, None]
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels.numpy(), exact, rtol=1e-5, atol=1e-5)
    assert batch.targets.tolist() == [1, 2]
    assert batch.targets.dtype == torch.int64
    assert len(batch) == 2


def test_by_default_pixels_go_from_minus_one_to_one():
    pixels = np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1).repeat(3, axis=1)
    batch = gather(ImageSplit(pixels, np.zeros(2, np.int64)), torch.arange(2), "cpu")
    assert batch.inputs["pixel_values"][:, 0, 0, 0].tolist() == [-1.0, 1.0]


def test_gathering_leaves_the_prepared_arrays_alone():
    split = images()
    before = split.pixels.copy()
    batch = gather(split, torch.arange(10), "cpu", augment="flip_crop")
    batch.inputs["pixel_values"].zero_()
    batch.targets.zero_()
    assert np.array_equal(split.pixels, before)
    assert split.targets.max() == 2


def test_what_is_kept_between_batches_can_be_trained_with():
    with torch.inference_mode():
        gather(images(), torch.arange(2), "cpu", normalize=((0.25,), (0.75,)))
    batch = gather(images(), torch.arange(2), "cpu", normalize=((0.25,), (0.75,)))
    weight = torch.ones(1, requires_grad=True)
    (batch.inputs["pixel_values"] * weight).sum().backward()
    assert weight.grad is not None


def test_each_image_is_flipped_on_its_own_about_half_of_the_time():
    torch.manual_seed(0)
    pixels = torch.from_numpy(images(400).pixels)
    out = augmented(pixels, "flip")
    same = (out == pixels).flatten(1).all(1)
    mirrored = (out == pixels.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 160 < int(mirrored.sum()) < 240


def test_a_crop_is_the_image_moved_by_up_to_an_eighth_with_black_behind():
    torch.manual_seed(0)
    h, w = 16, 32
    pixels = torch.from_numpy(images(600, h, w).pixels).clamp(min=1)
    out = augmented(pixels, "flip_crop")
    padded = torch.nn.functional.pad(pixels, (4, 4, 2, 2))
    moves = set()
    for image, big, result in zip(pixels, padded, out, strict=True):
        found = [
            (y, x, flip)
            for y in range(5)
            for x in range(9)
            for flip in (False, True)
            if torch.equal((big.flip(2) if flip else big)[:, y : y + h, x : x + w], result)
        ]
        assert len(found) == 1
        assert image.shape == result.shape
        moves.update(found)
    assert len(moves) == 5 * 9 * 2  # every move and mirror image comes up


def test_augmentation_repeats_with_the_global_generator():
    split = images(32)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = gather(split, torch.arange(32), "cpu", augment="flip_crop")
    other = gather(split, torch.arange(32), "cpu", augment="flip_crop")
    torch.set_rng_state(state)
    again = gather(split, torch.arange(32), "cpu", augment="flip_crop")
    assert torch.equal(first.inputs["pixel_values"], again.inputs["pixel_values"])
    assert not torch.equal(first.inputs["pixel_values"], other.inputs["pixel_values"])


def test_without_augmentation_nothing_is_drawn():
    state = torch.get_rng_state()
    gather(images(), torch.arange(4), "cpu")
    gather(texts([2, 3]), torch.arange(2), "cpu", augment="flip_crop")
    assert torch.equal(state, torch.get_rng_state())


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="unknown augmentation 'mixup'"):
        gather(images(), torch.arange(2), "cpu", augment="mixup")


def test_texts_are_padded_to_the_longest_of_the_batch():
    split = texts([3, 1, 5, 2])
    batch = gather(split, torch.tensor([3, 0]), "cpu")
    assert batch.inputs["input_ids"].tolist() == [[10, 11, 0], [1, 2, 3]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.targets.tolist() == [1, 0]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert batch.inputs["input_ids"].dtype == torch.int64


def test_texts_are_padded_as_their_model_wants():
    split = texts(
        [1, 3], token_types=np.array([2, 0, 0, 2], dtype=np.uint8), pad_type=3, pad_left=True
    )
    batch = gather(split, torch.tensor([0, 1]), "cpu")
    assert batch.inputs["input_ids"].tolist() == [[0, 0, 1], [2, 3, 4]]
    assert batch.inputs["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch.inputs["token_type_ids"].tolist() == [[3, 3, 2], [0, 0, 2]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.booleans(), st.data())
def test_a_text_batch_holds_every_token_once(lengths, left, data):
    split = texts(lengths, pad_left=left)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    batch = gather(split, torch.tensor(rows), "cpu")
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert ids.shape[1] == max(lengths[row] for row in rows)
    for row, line, kept in zip(rows, ids, mask, strict=True):
        start, end = split.offsets[row], split.offsets[row + 1]
        assert line[kept == 1].tolist() == split.tokens[start:end].tolist()
        assert (line[kept == 0] == 0).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 40))
def test_evaluation_sees_each_text_once_with_little_padding(lengths, batch_size):
    split = texts(lengths)
    batches = list(evaluation_batches(split, batch_size))
    order = torch.cat(batches)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    sorted_lengths = split.lengths[order.numpy()]
    assert (np.diff(sorted_lengths) <= 0).all()


def test_evaluation_takes_images_in_their_order():
    assert [b.tolist() for b in evaluation_batches(images(5), 2)] == [[0, 1], [2, 3], [4]]


def test_normalizing_is_the_textbooks():
    pixels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(-1, 3, -1, -1)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    exact = (pixels.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(
        std
    ).double().view(3, 1, 1)
    assert (normalized(pixels, (mean, std)) - exact).abs().max() < 1e-5
