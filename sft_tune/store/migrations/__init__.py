"""Alembic migrations of our tables; Optuna's tables have their own, under its own version table.

A new one is a module in ``versions`` and its revision here, at the end.
"""

VERSION_TABLE = "sft_alembic_version"

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
"""Every revision, oldest first: known here so that a quick look needs no Alembic."""

READABLE = "0006"
"""The oldest whose tables and columns are today's; later ones have added indexes."""
