"""Sounds: read from files and arrays, mixed, resampled, cut, padded; what is wrong with some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sft_tune.errors import DataError, ModelError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data import AudioSplit, Prepared, evaluation_batches, gather, prepare
from sft_tune.trial.data.audio import _features, read_sound, shortest_sound
from sft_tune.trial.data.examples import Examples
from sft_tune.trial.data.joined import joined

RATE = 8000


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def model(tmp_path: Path) -> ModelSpec:
    """A wav2vec 2.0 whose feature extractor leaves samples as they are."""
    folder = tmp_path / "model"
    folder.mkdir()
    settings = {"conv_kernel": [10, 3], "conv_stride": [5, 2], "mask_time_length": 2}
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2", **settings}))
    extractor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "sampling_rate": RATE,
        "do_normalize": False,
        "return_attention_mask": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return ModelSpec(name=f"transformers:{folder}", weights="none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five sounds each of two classes, of 0.1 to 0.5 seconds."""
    for label, suffix in (("low", "wav"), ("high", "flac")):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(1, 6):
            path = tmp_path / "set" / label / f"{i}.{suffix}"
            soundfile.write(path, tone(i / 10), RATE)
    return tmp_path / "set"


def prepared(source: Path, model: ModelSpec, **data: Any) -> Prepared:
    spec = DataSpec(source=str(source), **data)
    return prepare("audio-classification", spec, model, cache=source.parent / "cache")


def read(value: Any, rate: int = RATE) -> np.ndarray:
    return read_sound(Examples([value], ["a"], lambda i: f"place {i}"), 0, rate)


def test_a_folder_becomes_flat_arrays_and_batches_of_like_length(folder, model):
    data = prepared(folder, model, max_seconds=0.35)
    train = data.train
    assert isinstance(train, AudioSplit) and data.labels == ("high", "low")
    assert (len(train), len(data.validation)) == (8, 2)
    assert set(train.lengths.tolist()) <= {800, 1600, 2400, 2800}
    assert len(train.values) == train.offsets[-1] == train.lengths.sum()
    facts = data.facts["audio"]["train"]
    assert facts["rate"] == RATE and facts["max"] == 0.5 and 0.3 < facts["share_cut"] < 0.6
    first = next(evaluation_batches(train, 3))
    assert (train.lengths[first.numpy()] == 2800).all()  # the longest first
    batch = gather(train, torch.arange(8), "cpu")
    values, mask = batch.inputs["input_values"], batch.inputs["attention_mask"]
    assert values.shape == mask.shape == (8, 2800)
    assert (mask.sum(dim=1).numpy() == train.lengths).all()
    assert not values[mask == 0].any()
    assert torch.allclose(values[0, :800], torch.from_numpy(tone(0.1)).float(), atol=1e-3)
    both = joined(train, data.validation)
    assert len(both) == 10 and both.offsets[-1] == len(both.values)


def test_a_table_names_files_beside_it(folder, model):
    rows = [("set/low/1.wav", "a"), ("set/high/2.flac", "b")] * 3
    for name, text in (
        ("t.csv", "audio,label\n" + "".join(f"{path},{label}\n" for path, label in rows)),
        ("t.jsonl", "".join(json.dumps({"audio": p, "label": v}) + "\n" for p, v in rows)),
    ):
        (folder.parent / name).write_text(text)
        data = prepared(folder.parent / name, model, validation_fraction=0.34)
        assert set(data.train.lengths.tolist()) == {800, 1600}


def test_channels_are_mixed_and_other_rates_resampled():
    stereo = np.stack([tone(0.5, 11025), np.zeros(5512)], axis=1)
    wave = read({"array": stereo, "sampling_rate": 11025})
    assert abs(len(wave) - 4000) <= 1 and wave.dtype == np.float32
    middle = slice(200, 3800)
    assert np.allclose(wave[middle], tone(0.5)[middle] / 2, atol=0.01)
    # What the lower rate cannot represent is filtered out, not folded down.
    high = read({"array": tone(0.5, 32000, hertz=6000), "sampling_rate": 32000})
    assert np.abs(high[middle]).max() < 0.02
    whole = (tone(0.1) * 32767).astype(np.int16)
    assert np.allclose(read({"array": whole, "sampling_rate": RATE}), tone(0.1), atol=1e-3)


def test_a_sound_too_short_for_the_model_is_padded_with_silence(folder, model):
    soundfile.write(folder / "low" / "1.wav", tone(0.1)[:5], RATE)
    # Three frames of stride 10, and what the kernels reach beyond.
    assert shortest_sound(Path(model.name.partition(":")[2])) == 40
    data = prepared(folder, model)
    assert min(data.train.lengths.min(), data.validation.lengths.min()) == 40


def test_a_frame_that_an_extractor_adds_to_make_up_a_pair_is_left_out():
    from transformers import SeamlessM4TFeatureExtractor

    extractor = SeamlessM4TFeatureExtractor()  # of wav2vec2-bert: two frames of 10 ms at a time
    lengths = [
        len(_features(extractor, tone(seconds, 16000).astype(np.float32), 1))
        for seconds in (1.0, 1.01, 1.02)
    ]
    assert lengths == [49, 49, 50]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"RIFF nothing", "Error opening"),
        (None, "there is none"),
        (np.zeros(5), "no path, bytes or dict with array and sampling_rate"),
        ({"array": np.zeros(5), "sampling_rate": 0}, "sampling_rate is 0; give samples a second"),
        ({"array": np.zeros(5), "sampling_rate": None}, "sampling_rate is None"),
        ({"array": np.zeros(0), "sampling_rate": RATE}, "it is empty"),
        ({"array": np.array([0.0, np.nan]), "sampling_rate": RATE}, "not finite"),
        ({"array": np.array(["a"]), "sampling_rate": RATE}, "is no sound"),
    ],
    ids=["torn", "missing", "no rate", "zero rate", "rate none", "empty", "nan", "text"],
)
def test_what_is_no_sound_is_refused_with_its_place(value, message):
    with pytest.raises(DataError, match=message) as caught:
        read(value)
    assert "the sound at place 0" in str(caught.value)


def test_files_that_cannot_be_read_are_all_named_or_skipped_if_asked(folder, model):
    (folder / "low" / "1.wav").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"the sound at .*low/1\.wav cannot be read"):
        prepared(folder, model)
    soundfile.write(folder / "high" / "2.flac", tone(0), RATE)
    with pytest.raises(DataError, match=r"^2 sounds cannot be read: .*2\.flac, .*1\.wav"):
        prepared(folder, model)
    data = prepared(folder, model, skip_unreadable=True)
    assert data.facts["class_counts"]["train"] == {"high": 3, "low": 3}


def test_a_folder_of_other_files_and_a_model_of_images_are_told(folder, model, tmp_path):
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "1.txt").touch()
    with pytest.raises(DataError, match=r"no sounds in the class folders a \(known are \.aif"):
        prepared(tmp_path / "texts", model)
    with pytest.raises(ModelError, match="sounds need a model with a feature extractor"):
        prepared(folder, ModelSpec(name="torchvision:resnet18"))
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="needs its preprocessor_config.json beside it"):
        prepared(folder, model)
