"""The command line: thin commands; what is slow to import is imported inside them."""

from __future__ import annotations

from sft_tune.cli.app import app, main

__all__ = ["app", "main"]
