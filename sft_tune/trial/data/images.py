"""Images: decoded once, in their own size or resized to one, to uint8 [n, 3, h, w]."""

from __future__ import annotations

import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data.arrays import array_path
from sft_tune.trial.data.cache import ArrayWriter
from sft_tune.trial.data.examples import Examples, UnreadableError, reason
from sft_tune.trial.data.pretrained import pretrained_folder, read_settings

Pixels = NDArray[np.uint8]
Part = TypeVar("Part")
Result = TypeVar("Result")
_CHUNK = 64
# Seconds per image; quicker decoders only wait for the interpreter's lock in threads.
_WORTH_THREADS = 0.001
_DEFAULT_SIDE = 224
# The tag of EXIF that says how a camera was held, and its values for a quarter turn.
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


class MixedSizesError(Exception):
    """Images differ in size where each was to keep its own; the message names two sizes."""


@dataclass(frozen=True)
class ImageEncoder:
    """Writes images as arrays.

    Attributes:
        size: height and width that images are resized to; None: their own, which must be equal.
    """

    size: tuple[int, int] | None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the arrays, besides the images."""
        return {"kind": "image", "size": self.size, "pillow": version("pillow")}

    def write(
        self, examples: Examples, rows: NDArray[np.int64], folder: Path, split: str
    ) -> dict[str, Any]:
        """Decode the images ``rows`` to the array ``pixels`` of ``split``; return facts.

        Raises:
            UnreadableError: for the first image that cannot be read.
            MixedSizesError: where `size` is None and the images differ in size.
        """
        size = self.size or _height_width(read_image(examples, int(rows[0])))

        def decode(part: NDArray[np.int64]) -> tuple[Pixels, int]:
            images = [read_image(examples, int(i)) for i in part]
            other = [i for i, image in enumerate(images) if _height_width(image) != size]
            if other and self.size is None:
                (h, w), (h2, w2) = size, _height_width(images[other[0]])
                raise MixedSizesError(f"{w}x{h} and {w2}x{h2}")
            for i in other:
                # Pillow widens its filters when it shrinks an image: antialiased.
                images[i] = images[i].resize(size[::-1], Image.Resampling.BICUBIC)
            return np.stack([np.asarray(image) for image in images]), len(other)

        resized = 0
        shape = (len(rows), 3, *size)
        with ArrayWriter(array_path(folder, split, "pixels"), shape, np.uint8) as writer:
            for pixels, count in in_order(decode, chunks(rows)):
                writer.append(pixels.transpose(0, 3, 1, 2))
                resized += count
        return {"kind": "image", "size": list(size), "resized": resized}


def in_order(function: Callable[[Part], Result], parts: Sequence[Part]) -> Iterator[Result]:
    """Yield ``function(part)`` in order; in threads where the first says that it pays.

    Never more than a few results wait, so that memory stays small however long ``parts`` is.
    """
    if not parts:
        return
    began = time.perf_counter()
    yield function(parts[0])
    threads = os.cpu_count() or 1
    if time.perf_counter() - began < _WORTH_THREADS * _CHUNK or threads == 1:
        yield from map(function, parts[1:])
        return
    with ThreadPoolExecutor(threads) as pool:
        left = iter(parts[1:])
        waiting: deque[Future[Result]] = deque()
        try:
            waiting.extend(pool.submit(function, part) for part in islice(left, 2 * threads))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, part) for part in islice(left, 1))
        finally:
            for future in waiting:
                future.cancel()


def _height_width(image: Image.Image) -> tuple[int, int]:
    return image.height, image.width


def read_image(examples: Examples, i: int) -> Image.Image:
    """Decode image ``i``: upright, RGB, 8 bits a channel.

    Raises:
        UnreadableError: where it cannot be read, with its place.
    """
    return _opened(examples, i, _to_rgb)


def image_size(examples: Examples, i: int) -> tuple[int, int]:
    """Return height and width of image ``i`` as it would be decoded; only its header is read.

    Raises:
        UnreadableError: where it cannot be read, with its place.
    """
    return _opened(examples, i, _upright_size)


def _opened(examples: Examples, i: int, use: Callable[[Image.Image], Result]) -> Result:
    try:
        value = examples.inputs[i]
        if isinstance(value, str | Path | bytes):
            with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
                return use(image)
        if isinstance(value, np.ndarray):
            return use(_from_array(value))
        if isinstance(value, Image.Image):
            return use(value)
        if value is None:
            raise TypeError("there is none")
        raise TypeError(f"a {type(value).__name__} is no path, bytes, PIL image or uint8 array")
    except MemoryError:
        raise
    # Pillow's decoders raise whatever a broken file leads them to: OSError, ValueError,
    # SyntaxError, struct.error, IndexError, ...; all mean the same for this image.
    except Exception as error:
        raise UnreadableError("image", examples.place(i), reason(error)) from error


def chunks(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return ``rows`` in parts that are worth a thread each."""
    return [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]


def _upright_size(image: Image.Image) -> tuple[int, int]:
    sideways = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
    return (image.width, image.height) if sideways else (image.height, image.width)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16-bit grey; Pillow's own conversion would clip all above 255 to white.
        grey = np.clip(np.asarray(image) // 257, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating point; write it with 8 or 16 bits a channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8:
        raise ValueError(f"an array of {array.dtype} is no image; scale it to 0..255 as uint8")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(f"an array of shape {list(array.shape)} is no [h, w] or [h, w, 3] image")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def made_for(model: ModelSpec) -> int:
    """Return the side in pixels of the images that ``model`` was pretrained on; 224 if unknown."""
    library, _, name = model.name.partition(":")
    if library == "torchvision":
        return _torchvision_side(name, model.weights)
    if library == "timm":
        from sft_tune.trial.models_timm import side

        return side(model)
    if library == "transformers":
        return _transformers_side(name)
    return _DEFAULT_SIDE


def _torchvision_side(name: str, weights: str) -> int:
    from torchvision import models

    try:
        known = models.get_model_weights(name)
    except ValueError:
        return _DEFAULT_SIDE  # no model of this name; the model's builder will say so
    chosen = known.__members__.get(weights) or known.__members__.get("DEFAULT")
    if chosen is None:
        return _DEFAULT_SIDE
    # Those of models that make masks have no crop.
    steps = chosen.transforms()
    crop = getattr(steps, "crop_size", None) or steps.resize_size
    return int(crop[0] if isinstance(crop, list | tuple) else crop)


def _transformers_side(name: str) -> int:
    """Return the side that a model's own files state: its configuration, or its processor."""
    folder = pretrained_folder(name)
    for file, keys in (
        ("config.json", ("image_size",)),
        ("preprocessor_config.json", ("crop_size", "size")),
    ):
        stated = read_settings(folder / file)
        for value in (stated.get(key) for key in keys):
            if isinstance(value, dict):
                value = value.get("height") or value.get("shortest_edge")
            if isinstance(value, list) and value:
                value = value[0]
            if isinstance(value, int):
                return value
    return _DEFAULT_SIDE
