"""What a place is, told from its text alone: so short that a command need not load more for it."""

from __future__ import annotations


def is_url(place: str) -> bool:
    """Tell whether ``place`` is a URL, else a path."""
    return "://" in place
