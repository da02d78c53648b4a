"""Load the image model of this folder. It needs torch and torchvision or timm, and nothing else.

From the shell, the labels of pictures and their probabilities (of a regression, its number; of
a class for each pixel, their shares and a picture of the indices, photo.mask.png; of boxes, each
that is at least half sure)::

    python load_model.py photo.jpg

In a program::

    from load_model import load_model, preprocess

    model = load_model()
    logits = model(preprocess(Image.open("photo.jpg"), model.settings)[None])
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL import Image

HERE = Path(__file__).resolve().parent
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def load_model(folder: str | Path = HERE) -> nn.Module:
    """Return the fine-tuned module in evaluation mode.

    It maps pixels [b, 3, h, w], as `preprocess` makes them, to logits [b, classes]; the one
    output of a regression is in the units of its targets. A model that makes masks answers with a
    dictionary, whose ``out`` is logits [b, classes, h, w]. A detector takes a list of pixels
    [3, h, w] in 0..1, and answers with a dictionary for each: ``boxes`` (left, top, right,
    bottom), ``scores``, and ``labels``, which count from 1. The attribute ``labels`` holds the
    names of the classes in the order of the logits, ``settings`` what is in ``model.json``.
    """
    folder = Path(folder)
    settings: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf8"))
    module = _skeleton(settings, folder)
    module.load_state_dict(read_tensors(folder / "model.safetensors"))
    module.labels = tuple(settings["labels"])  # type: ignore[assignment]
    module.settings = settings  # type: ignore[assignment]
    return module.eval()


def preprocess(image: Image.Image, settings: dict[str, Any]) -> Tensor:
    """Return ``image`` as the model was trained on its like: float32 [3, h, w]."""
    import numpy as np
    from PIL import Image

    image = image.convert("RGB")
    if settings["image_size"] is None:
        # A detector resizes and normalizes images itself.
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    height, width = settings["image_size"]
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean = torch.tensor(settings["mean"])[:, None, None]
    return (pixels - mean) / torch.tensor(settings["std"])[:, None, None]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file: a JSON header of places, then plain bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        dtype = DTYPES[entry["dtype"]]
        if begin == end:
            tensors[name] = torch.empty(entry["shape"], dtype=dtype)
            continue
        own = bytearray(data[start + begin : start + end])
        tensors[name] = torch.frombuffer(own, dtype=dtype).reshape(entry["shape"])
    return tensors


def _skeleton(settings: dict[str, Any], folder: Path) -> nn.Module:
    """Return the network with random weights, its head as wide as there are labels."""
    if settings["outputs"] == "boxes":
        return _detector(settings, folder)
    arguments = {
        k: tuple(v) if isinstance(v, list) else v for k, v in settings["arguments"].items()
    }
    if settings["library"] == "builtin":
        module: nn.Module = _beside(folder, "convnet").ConvNet(2)
    elif settings["library"] == "timm":
        import timm

        classes = len(settings["labels"])
        made: nn.Module = timm.create_model(settings["name"], num_classes=classes, **arguments)
        return made
    else:
        import torchvision

        module = torchvision.models.get_model(settings["name"], weights=None, **arguments)
    head = settings["head"]
    if head is None:
        return module
    layer: nn.Module = _resized(module.get_submodule(head), len(settings["labels"]))
    if settings["dropout_before_head"]:
        layer = nn.Sequential(OrderedDict(dropout=nn.Dropout(0.0), output=layer))
    module.set_submodule(head, layer)
    return module


def _resized(old: nn.Module, classes: int) -> nn.Module:
    """Return a layer like ``old`` with ``classes`` outputs."""
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, classes, bias=old.bias is not None)
    if isinstance(old, nn.Conv2d):
        size: Any = old.kernel_size
        stride: Any = old.stride
        padding: Any = old.padding
        return nn.Conv2d(
            *(old.in_channels, classes, size),
            stride=stride,
            padding=padding,
            bias=old.bias is not None,
        )
    raise TypeError(f"the head is a {type(old).__name__}, not a linear or convolutional layer")


def _detector(settings: dict[str, Any], folder: Path) -> nn.Module:
    detectors = _beside(folder, "detectors")
    module: nn.Module = detectors.build_detector(settings["name"], settings["arguments"])
    if settings["frozen_batch_norm"]:
        detectors.freeze_statistics(module, settings["epsilon"])
    detectors.set_normalization(module, settings["mean"], settings["std"])
    return module


def _beside(folder: Path, name: str) -> Any:
    """Return the module of the Python file ``name`` beside this one."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{name}.py is not in {folder}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(paths: list[str]) -> None:
    """Print for each picture of ``paths`` the three likeliest labels, or the number."""
    from PIL import Image

    if not paths or paths[0] in ("-h", "--help"):
        print("usage: python load_model.py PICTURE...", file=sys.stdout if paths else sys.stderr)
        sys.exit(0 if paths else 2)
    for path in paths:
        try:
            with Image.open(path) as image:
                image.load()
        except OSError as error:
            print(f"error: {path}: {error.strerror or 'no picture'}", file=sys.stderr)
            sys.exit(2)
    model = load_model()
    labels: Any = model.labels
    settings: Any = model.settings
    for path in paths:
        if settings["outputs"] == "boxes":
            with Image.open(path) as image, torch.inference_mode():
                _show_boxes(path, model([preprocess(image, settings)])[0], labels)
            continue
        with Image.open(path) as image, torch.inference_mode():
            answer, size = model(preprocess(image, settings)[None]), image.size
        if settings["outputs"] == "masks":
            _show_mask(answer["out"][0], labels, size, Path(path).with_suffix(".mask.png"))
            continue
        logits = answer[0]
        if settings["outputs"] == "number":
            print(path, f"{logits.item():.6g}")
            continue
        shares = logits.softmax(0)
        best = shares.topk(min(3, len(labels)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        print(path, ", ".join(f"{labels[index]} {share:.3f}" for index, share in pairs))


def _show_boxes(path: str, found: dict[str, Tensor], labels: Any) -> None:
    """Print each box of a picture that is at least half sure, with its label and score."""
    rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"], strict=True)
    if not (found["scores"] >= 0.5).any():
        print(path, "nothing that is at least half sure")
    for (left, top, right, bottom), label, score in rows:
        if score >= 0.5:
            place = f"{left:.0f} {top:.0f} {right:.0f} {bottom:.0f}"
            print(path, labels[label - 1], f"{score:.3f}", place)


def _show_mask(logits: Tensor, labels: Any, size: tuple[int, int], path: Path) -> None:
    """Write the likeliest index of each pixel to ``path``, and print how many have which."""
    from PIL import Image

    indices = logits.argmax(dim=0).to(torch.uint8)
    mask = Image.fromarray(indices.numpy()).resize(size, Image.Resampling.NEAREST)
    mask.save(path)
    shares = torch.bincount(indices.flatten().long(), minlength=len(labels)) / indices.numel()
    found = sorted(zip(shares.tolist(), labels, strict=True), reverse=True)
    print(path, ", ".join(f"{label} {share:.3f}" for share, label in found if share > 0))


if __name__ == "__main__":
    main(sys.argv[1:])
