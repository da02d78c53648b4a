"""Sounds made by formula: what an instrument, a siren or the wind might do, in a noisy room.

The function is called with the name of a split, and returns columns, or None for no such split.
"""

import numpy as np

RATE, SECONDS = 8000, 0.8
COUNTS = {"train": 200, "test": 80}


def kinds(split):
    """Chords, rising and falling sweeps, and coloured noise, with their names."""
    if split not in COUNTS:
        return None
    columns = {"audio": [], "label": []}
    for sound, name in _sounds(split):
        columns["audio"].append({"array": sound, "sampling_rate": RATE})
        columns["label"].append(name)
    return columns


def write(folder, kind="wav"):
    """Write the same as files: ``train/chord/000.wav``, ..."""
    import soundfile

    for split in COUNTS:
        for i, (sound, name) in enumerate(_sounds(split)):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / split / name / f"{i:03}.{kind}", sound, RATE)


def _sounds(split):
    """Yield samples in -1..1 and names; the same each time, of other numbers for each split."""
    generator = np.random.default_rng(len(split))
    for i in range(COUNTS[split]):
        name = tuple(MAKERS)[i % len(MAKERS)]
        # From half the length to the whole, at a loudness and over a background of its own.
        n = int(RATE * SECONDS * generator.uniform(0.5, 1.0))
        sound = MAKERS[name](np.arange(n) / RATE, generator)
        sound /= np.abs(sound).max()
        sound *= np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / 400)  # no clicks
        room = generator.normal(0, generator.uniform(0.05, 0.3), n)
        yield (0.3 * generator.uniform(0.5, 1.5) * sound + 0.3 * room).astype(np.float32), name


def _chord(t, generator):
    root = generator.uniform(150, 500)
    steps = (0, generator.choice((3, 4)), 7)
    notes = [root * 2 ** (step / 12) for step in steps]
    return sum(np.sin(2 * np.pi * note * t + generator.uniform(0, 6)) for note in notes)


def _sweep(t, generator, up):
    low, high = generator.uniform(150, 500), generator.uniform(1200, 2500)
    first, last = (low, high) if up else (high, low)
    return np.sin(2 * np.pi * (first * t + (last - first) * t**2 / (2 * t[-1])))


def _wind(t, generator):
    noise = generator.normal(size=len(t) + 200)
    width = generator.integers(3, 12)
    return np.convolve(noise, np.ones(width) / width, "same")[: len(t)]


MAKERS = {
    "chord": _chord,
    "rising": lambda t, generator: _sweep(t, generator, up=True),
    "falling": lambda t, generator: _sweep(t, generator, up=False),
    "wind": _wind,
}
