"""Small data sets on disk, and one door to `prepare` for each task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data import Prepared, prepare

Prepare = Callable[..., Prepared]
WORDS = ("good", "bad", "film", "plot", "the", "a", "very")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def prepare_images(cache: Path) -> Prepare:
    """`prepare` of an image task: source and settings of `data` -> Prepared."""

    def call(source: Any, *, with_test: bool = False, model: str = "", **data: Any) -> Prepared:
        spec = DataSpec(source=str(source), **data)
        named = ModelSpec(name=model or "builtin:convnet", weights="none")
        return prepare("image-classification", spec, named, cache=cache, with_test=with_test)

    return call


@pytest.fixture
def prepare_texts(cache: Path, tokenizer: Path) -> Prepare:
    """`prepare` of a text task, with a tokenizer of whole words."""

    def call(source: Any, *, with_test: bool = False, model: str = "", **data: Any) -> Prepared:
        spec = DataSpec(source=str(source), **data)
        named = ModelSpec(name=model or f"transformers:{tokenizer}")
        return prepare("text-classification", spec, named, cache=cache, with_test=with_test)

    return call


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A model folder with a BERT tokenizer of a dozen words: [PAD]=0 [UNK]=1 [CLS]=2 [SEP]=3."""
    return Make.tokenizer(tmp_path / "model")


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Ten images each of two classes, no splits: cat has values 0-9, dog 100-109."""
    root = tmp_path / "pets"
    Make.images(root / "cat", range(10))
    Make.images(root / "dog", range(100, 110))
    return root


@pytest.fixture
def make() -> type[Make]:
    return Make


class Make:
    """What the tests of this folder write and look at."""

    @staticmethod
    def tokenizer(folder: Path, **settings: Any) -> Path:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
        made = Tokenizer(
            models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
        )
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
        made.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        folder.mkdir(parents=True, exist_ok=True)
        made.save(str(folder / "tokenizer.json"))
        stated = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "model_max_length": 64,
            **settings,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(stated))
        (folder / "config.json").write_text(
            json.dumps({"model_type": "bert", "max_position_embeddings": 40})
        )
        return folder

    @staticmethod
    def picture(value: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
        """A picture whose pixels all have one value, so that it can be told from others."""
        return Image.new("RGB", size, (value, value, value))

    @staticmethod
    def images(folder: Path, values: Iterable[int], size: tuple[int, int] = (8, 8)) -> Path:
        """Write one PNG of each value into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        for value in values:
            Make.picture(value, size).save(folder / f"{value:03d}.png")
        return folder

    @staticmethod
    def csv(path: Path, rows: Iterable[tuple[Any, ...]], header: str = "text,label") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [header, *(",".join(f'"{cell}"' for cell in row) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    @staticmethod
    def jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    @staticmethod
    def reviews(n: int, start: int = 0) -> list[dict[str, Any]]:
        """Half good and half bad films; no two texts alike."""
        return [
            {
                "text": " ".join(["the", "film", ("good", "bad")[i % 2]] + ["very"] * (i // 2)),
                "label": ("good", "bad")[i % 2],
            }
            for i in range(start, start + n)
        ]

    @staticmethod
    def texts(split: Any) -> list[list[int]]:
        """The token ids of every text of a split."""
        return [
            split.tokens[a:b].tolist()
            for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)
        ]

    @staticmethod
    def values(split: Any) -> np.ndarray[Any, Any]:
        """The value of each picture of a split."""
        return split.pixels[:, 0, 0, 0]
