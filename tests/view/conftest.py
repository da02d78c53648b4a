from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console, RenderableType

Draw = Callable[..., str]


@pytest.fixture
def draw_text() -> Draw:
    """Return the text that a terminal of `width` columns shows of a renderable."""

    def text(renderable: RenderableType, width: int = 80) -> str:
        file = io.StringIO()
        console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)
        console.print(renderable)
        lines = [line.rstrip() for line in file.getvalue().splitlines()]
        assert max(map(len, lines), default=0) <= width
        return "\n".join(lines)

    return text
