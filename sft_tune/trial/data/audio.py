"""Sounds: decoded once, mixed to mono, resampled, and made to what the model reads."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_tune.errors import DataError, ModelError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data.arrays import array_path
from sft_tune.trial.data.cache import ArrayWriter, save
from sft_tune.trial.data.examples import Examples, UnreadableError, reason
from sft_tune.trial.data.images import chunks, in_order
from sft_tune.trial.data.pretrained import contents_identity, read_settings, transformers_folder

Wave = NDArray[np.float32]
_INSTALL = "sounds are read by soundfile, which is not installed; pip install 'sft_tune[audio]'"


class MissingLibraryError(DataError):
    """The library that reads sounds is not installed."""


@dataclass(frozen=True)
class AudioEncoder:
    """Writes sounds as what the feature extractor of a model makes of them.

    Attributes:
        folder: where the model's feature extractor lies.
        max_seconds: what is longer is cut there.
    """

    folder: Path
    max_seconds: float

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the arrays, besides the sounds."""
        return {
            "kind": "audio",
            "extractor": contents_identity(self.folder),
            "max_seconds": self.max_seconds,
            "soundfile": _soundfile().__version__,
            "scipy": version("scipy"),
            "transformers": version("transformers"),
        }

    def write(
        self, examples: Examples, rows: NDArray[np.int64], folder: Path, split: str
    ) -> dict[str, Any]:
        """Write what the model reads of the sounds ``rows`` to arrays of ``split``; return facts.

        Raises:
            UnreadableError: for the first sound that cannot be read.
            ModelError: where the model has no feature extractor that can be loaded.
        """
        extractor = load_extractor(self.folder)
        rate, key = int(extractor.sampling_rate), str(extractor.model_input_names[0])
        most = max(1, round(self.max_seconds * rate))
        shortest = shortest_sound(self.folder)

        def encode(part: NDArray[np.int64]) -> tuple[list[NDArray[np.float32]], list[int]]:
            waves = [read_sound(examples, i, rate) for i in part.tolist()]
            return [_features(extractor, w[:most], shortest) for w in waves], list(map(len, waves))

        lengths: list[int] = []
        samples: list[int] = []
        writer: ArrayWriter | None = None
        for features, counts in in_order(encode, chunks(rows)):
            if writer is None:
                shape = (None, *features[0].shape[1:])
                writer = ArrayWriter(array_path(folder, split, "values"), shape, np.float32)
            writer.append(np.concatenate(features))
            lengths += [len(each) for each in features]
            samples += counts
        if writer is not None:
            writer.close()
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        save(array_path(folder, split, "offsets"), offsets)
        return {
            "kind": "audio",
            "key": key,
            "masked": _is_masked(extractor),
            "audio": {"rate": rate, **_facts(np.array(samples) / rate, self.max_seconds)},
        }


def audio_encoder(data: DataSpec, model: ModelSpec) -> AudioEncoder:
    """Return the encoder for the feature extractor of ``model``.

    Raises:
        ModelError: where the model is none of transformers, or its files are not to be had.
    """
    folder = transformers_folder(model, "sounds need a model with a feature extractor")
    return AudioEncoder(folder, data.max_seconds)


def load_extractor(folder: Path) -> Any:
    """Load the feature extractor in ``folder``; no code from there is run.

    Raises:
        ModelError: where there is none for sounds, or it cannot be loaded.
    """
    from transformers import AutoFeatureExtractor

    try:
        extractor = AutoFeatureExtractor.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        if not hasattr(extractor, "sampling_rate"):
            raise ValueError(f"a {type(extractor).__name__} reads no sounds")
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the feature extractor in {folder} cannot be loaded: {reason(error)}. A model for "
            "sounds needs its preprocessor_config.json beside it."
        ) from error
    return extractor


def read_sound(examples: Examples, i: int, rate: int | None = None) -> Wave:
    """Return sound ``i``: mono (the mean of its channels), ``rate`` samples a second, or its own.

    Raises:
        UnreadableError: where it cannot be read, is empty or not finite, with its place.
    """
    try:
        wave, own = _decoded(examples.inputs[i])
        if wave.ndim == 2:
            wave = wave.mean(axis=1)
        if wave.ndim != 1 or not len(wave):
            raise ValueError("it is empty" if not wave.size else f"it has {wave.ndim} dimensions")
        if not np.isfinite(wave).all():
            raise ValueError("it has samples that are not finite")
        return wave if rate in (own, None) else _resampled(wave, own, rate)
    except (MemoryError, MissingLibraryError):
        raise
    # libsndfile and the decoders behind it raise whatever a broken file leads them to; all mean
    # the same for this sound.
    except Exception as error:
        raise UnreadableError("sound", examples.place(i), reason(error)) from error


def shortest_sound(folder: Path) -> int:
    """Return how many samples a sound needs to become one frame, or as many as are masked at once.

    That is the receptive field of the convolutions of wav2vec 2.0 and its kin; 1 where a model
    has no such layers.
    """
    settings = read_settings(folder / "config.json")
    kernels, strides = settings.get("conv_kernel"), settings.get("conv_stride")
    if not isinstance(kernels, list) or not isinstance(strides, list):
        return 1
    # SpecAugment refuses sequences that are shorter than one of its masks.
    length = int(settings.get("mask_time_length") or 10) + 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        length = (length - 1) * stride + kernel
    return length


def _soundfile() -> Any:
    """Return the library, which an extra installs.

    Raises:
        MissingLibraryError: where it is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # the latter: without the C library
        raise MissingLibraryError(_INSTALL) from error
    return soundfile


def _decoded(value: Any) -> tuple[Wave, int]:
    """Return samples [n] or [n, channels], and how many of them are a second."""
    if isinstance(value, str | Path | bytes):
        file = io.BytesIO(value) if isinstance(value, bytes) else str(value)
        wave, rate = _soundfile().read(file, dtype="float32")
        return wave, int(rate)
    if isinstance(value, dict) and {"array", "sampling_rate"} <= set(value):
        return _from_array(np.asarray(value["array"])), _rate(value["sampling_rate"])
    if value is None:
        raise TypeError("there is none")
    raise TypeError(
        f"a {type(value).__name__} is no path, bytes or dict with array and sampling_rate"
    )


def _from_array(array: NDArray[Any]) -> Wave:
    if array.dtype.kind == "i":  # the whole range of the type is -1 to 1, as in a file
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    if array.dtype.kind != "f":
        raise ValueError(f"an array of {array.dtype} is no sound; give floats in -1..1")
    return array.astype(np.float32)


def _rate(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"its sampling_rate is {value!r}; give samples a second, like 16000")
    return int(value)


def _resampled(wave: Wave, own: int, rate: int) -> Wave:
    """Return ``wave`` through a polyphase filter that keeps out what cannot be represented."""
    from scipy.signal import resample_poly

    common = math.gcd(own, rate)
    made: Wave = resample_poly(wave, rate // common, own // common).astype(np.float32)
    return made


def _features(extractor: Any, wave: Wave, shortest: int) -> NDArray[np.float32]:
    """Return what ``extractor`` makes of ``wave``: [length, ...], without padding of its own."""
    if len(wave) < shortest:
        wave = np.pad(wave, (0, shortest - len(wave)))
    made = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="np")
    found = np.asarray(made[extractor.model_input_names[0]][0], dtype=np.float32)
    mask = made.get("attention_mask")
    # Frames that were added to make up pairs are masked: batches are padded here.
    if mask is not None and mask.shape[1] == len(found):
        found = found[: int(mask[0].sum())]
    return found


def _is_masked(extractor: Any) -> bool:
    """Tell whether the model wants to be told which frames are padding.

    Those of wav2vec 2.0 that normalize by group were pretrained without, and their extractors
    say so. Spectrograms of a fixed length need no mask.
    """
    return bool(getattr(extractor, "return_attention_mask", False))


def _facts(seconds: NDArray[np.float64], limit: float) -> dict[str, Any]:
    """Return the facts about lengths in seconds, before the cut."""
    return {
        "median": round(float(np.median(seconds)), 3),
        "p95": round(float(np.percentile(seconds, 95)), 3),
        "max": round(float(seconds.max()), 3),
        "limit": limit,
        "share_cut": float(np.mean(seconds > limit)),
    }
