"""What to say to a name that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from sft_tune.errors import StudyNotFoundError

MOST_NAMES = 10


def not_found(name: str, known: Iterable[str]) -> StudyNotFoundError:
    """Return the error for a study ``name`` that is none of ``known``."""
    names = sorted(set(known))
    if not names:
        return StudyNotFoundError(
            f"no study named {name!r}: the database has none yet; `sft-tune start` adds one"
        )
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    return StudyNotFoundError(f"no study named {name!r} in the database; {hint}there are: {listed}")
