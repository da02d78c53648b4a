"""Indexes for what a runner asks whenever a trial starts or ends: few rows of many."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the indexes; every statement bears being done again (MySQL)."""
    _add("ix_sft_trials_number", ["study_id", "number"])
    if op.get_bind().dialect.name == "mysql":  # which has no index of some rows
        _add("ix_sft_trials_unended", ["study_id", "ended_at"])
        _add("ix_sft_trials_checkpoint", ["study_id", "checkpoint"], mysql_length={"checkpoint": 1})
    else:
        _add("ix_sft_trials_unended", ["study_id", "ordinal"], where="ended_at IS NULL")
        _add("ix_sft_trials_checkpoint", ["study_id", "number"], where="checkpoint IS NOT NULL")


def downgrade() -> None:
    """Remove them."""
    for name in ("number", "unended", "checkpoint"):
        op.drop_index(f"ix_sft_trials_{name}", "sft_trials")


def _add(name: str, columns: list[str], where: str | None = None, **options: Any) -> None:
    there = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes("sft_trials")}
    if name in there:
        return
    if where is not None:
        options = {"sqlite_where": sa.text(where), "postgresql_where": sa.text(where)}
    op.create_index(name, "sft_trials", columns, **options)
