"""The training of `to_target_frozen` as tutorials of transfer learning show it."""

from __future__ import annotations

import functools

from tests.benchmarks.rivals import images

fine_tune = functools.partial(images.fine_tune, frozen=True)
