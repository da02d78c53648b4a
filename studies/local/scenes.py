"""Scenes made of real parts: photographs of CIFAR-10, cut out and pasted on larger canvases.

The functions are called with the name of a split, and return columns, or None for no such split.
"""

import json
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


def boxes(split):
    """Scenes of several sizes with up to three airplanes and frogs, and the box of each."""
    if split not in COUNTS:
        return None
    columns = {"image": [], "boxes": [], "labels": []}
    for scene, found, names in _boxes(split):
        columns["image"].append(scene)
        columns["boxes"].append(found)
        columns["labels"].append(names)
    return columns


def write_boxes(folder, count=None):
    """Write the same as files, annotated as COCO's are: ``train/0.png``, ``train/boxes.json``."""
    for split in COUNTS:
        (folder / split).mkdir(parents=True)
        names = [{"id": i, "name": name} for i, name in enumerate(THINGS, start=1)]
        coco = {"images": [], "annotations": [], "categories": names}
        for i, (scene, found, labels) in enumerate(_boxes(split, count)):
            scene.save(folder / split / f"{i:03}.png")
            size = {"width": scene.width, "height": scene.height}
            coco["images"].append({"id": i, "file_name": f"{i:03}.png", **size})
            for (left, top, right, bottom), label in zip(found, labels, strict=True):
                annotation = {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": i,
                    "category_id": THINGS.index(label) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 0,
                }
                coco["annotations"].append(annotation)
        (folder / split / "boxes.json").write_text(json.dumps(coco))


def write_masks(folder):
    """Write the same as files: ``train/images/0.png``, ``train/masks/0.png``, ..."""
    for split in COUNTS:
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i, (scene, mask) in enumerate(_scenes(split)):
            scene.save(folder / split / "images" / f"{i:03}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{i:03}.png")


def _boxes(split, count=None):
    """Yield pictures with their boxes (left, top, right, bottom) and names; always the same."""
    generator = np.random.default_rng(len(split))
    photos = {name: sorted((PHOTOS / split / name).glob("*.jpg")) for name in THINGS}
    for i in range(count or COUNTS[split]):
        width, height = (int(side) for side in generator.integers(80, 113, 2))
        colours = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        scene = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
        found, names = [], []
        for _ in range(i % 4):  # a quarter of the scenes are empty
            name, side = THINGS[generator.integers(2)], int(generator.integers(24, 41))
            x, y = int(generator.integers(width - side)), int(generator.integers(height - side))
            if any(x < r and a < x + side and y < d and b < y + side for a, b, r, d in found):
                continue  # none hides another
            choice = photos[name][generator.integers(len(photos[name]))]
            with Image.open(choice) as photo:
                scene.paste(photo.convert("RGB").resize((side, side)), (x, y))
            found.append([x, y, x + side, y + side])
            names.append(name)
        yield scene, found, names


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
