"""Scenes made of real parts: photographs of CIFAR-10, cut out and pasted on larger canvases.

The functions are called with the name of a split, and return columns, or None for no such split.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"
THINGS = ("airplane", "frog")
SIDE, COUNTS = 64, {"train": 160, "test": 60}


def masks(split):
    """Scenes with an airplane, a frog, or both; indices 0 background, 1 airplane, 2 frog."""
    if split not in COUNTS:
        return None
    columns = {"image": [], "mask": []}
    for scene, mask in _scenes(split):
        columns["image"].append(scene)
        columns["mask"].append(mask)
    return columns


def write_masks(folder):
    """Write the same as files: ``train/images/0.png``, ``train/masks/0.png``, ..."""
    for split in COUNTS:
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i, (scene, mask) in enumerate(_scenes(split)):
            scene.save(folder / split / "images" / f"{i:03}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{i:03}.png")


def _scenes(split):
    """Yield pictures and their masks; the same each time, of photographs of this split only."""
    generator = np.random.default_rng(len(split))
    photos = {name: sorted((PHOTOS / split / name).glob("*.jpg")) for name in THINGS}
    for i in range(COUNTS[split]):
        # A background of soft colours, like a wall out of focus.
        colours = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        scene = Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        first = generator.integers(2)
        for index, name in enumerate(THINGS, start=1):
            if i % 3 == index:  # a third of the scenes lack it, a third have both
                continue
            cut = Image.new("L", (32, 32))
            ImageDraw.Draw(cut).ellipse((2, 2, 29, 29), fill=255)
            # The two stand side by side, in either order, so that neither hides the other.
            x = 32 * ((index + first) % 2)
            y = generator.integers(SIDE - 31)
            choice = photos[name][generator.integers(len(photos[name]))]
            with Image.open(choice) as photo:
                scene.paste(photo.convert("RGB"), (int(x), int(y)), cut)
            mask[y : y + 32, x : x + 32][np.asarray(cut) > 0] = index
        yield scene, mask
