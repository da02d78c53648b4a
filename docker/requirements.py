"""Write what the image installs, by the bounds in pyproject.toml, in two lists for pip.

``torch.txt`` has torch and torchvision alone, for a layer of their own; ``all.txt`` has every
dependency, those two included (so that their bounds hold when the others come), and the extras'.

Usage: python requirements.py pyproject.toml FOLDER EXTRA,EXTRA,...
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

HEAVY = ("torch", "torchvision")


def main(pyproject: str, folder: str, extras: str) -> None:
    """Write the lists for ``extras`` (names, with commas between them) into ``folder``."""
    project = tomllib.loads(Path(pyproject).read_text(encoding="utf8"))["project"]
    optional = project["optional-dependencies"]
    wanted = [name.strip() for name in extras.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in optional]:
        sys.exit(
            f"EXTRAS must name extras of {pyproject} (got {', '.join(unknown)}); "
            f"it has {', '.join(optional)}"
        )
    needed = [*project["dependencies"], *(line for name in wanted for line in optional[name])]
    heavy = [line for line in needed if re.split(r"[^\w.-]", line)[0] in HEAVY]
    for name, lines in {"torch.txt": heavy, "all.txt": needed}.items():
        Path(folder, name).write_text("".join(f"{line}\n" for line in lines), encoding="utf8")


if __name__ == "__main__":
    main(*sys.argv[1:])
