"""Targets made of the real data at hand, for the studies of this folder.

Each function is called with the name of a split, and returns columns, or None for no such split.
"""

import csv
from pathlib import Path

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def _sentences(split):
    with (DATA / "subjectivity" / f"{split}.csv").open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def which_is_subjective(split):
    """Pairs of sentences, one of them subjective: is it the first or the second?"""
    if split == "validation":
        return None
    kinds = {"subjective": [], "objective": []}
    for row in _sentences(split):
        kinds[row["label"]].append(row["text"])
    columns = {"text": [], "other": [], "label": []}
    for i, pair in enumerate(zip(kinds["subjective"], kinds["objective"], strict=False)):
        columns["text"].append(pair[i % 2])
        columns["other"].append(pair[1 - i % 2])
        columns["label"].append(("first", "second")[i % 2])
    return columns


def subjectivity_score(split):
    """Sentences, with 100 for a subjective one and 0 for an objective one as a number."""
    if split == "validation":
        return None
    rows = _sentences(split)
    scores = [100.0 if row["label"] == "subjective" else 0.0 for row in rows]
    return {"text": [row["text"] for row in rows], "label": scores}


def traits(split):
    """Sentences, each with a list of what it is: subjective, negated, about a man or a woman."""
    if split == "validation":
        return None
    words = {
        "negated": {"not", "no", "never", "nothing"},
        "man": {"he", "his", "him"},
        "woman": {"she", "her"},
    }
    columns = {"text": [], "label": []}
    for row in _sentences(split):
        text = set(row["text"].replace("n't", " not").split())
        found = [name for name, known in words.items() if text & known]
        if row["label"] == "subjective":
            found.append("subjective")
        columns["text"].append(row["text"])
        columns["label"].append(found)
    return columns


def warmth(split):
    """Photographs, with how much redder than blue they are in the mean, in levels of 255."""
    from PIL import Image, ImageStat

    if split == "validation":
        return None
    columns = {"image": [], "label": []}
    for path in sorted((DATA / "cifar10" / split).glob("*/*.jpg"))[::10]:
        red, _, blue = ImageStat.Stat(Image.open(path).convert("RGB")).mean
        columns["image"].append(path)
        columns["label"].append(red - blue)
    return columns
