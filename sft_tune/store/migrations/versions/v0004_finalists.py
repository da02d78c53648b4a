"""Confirmation runs that several runners share: who has which, and how far it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")


def _columns() -> list[sa.Column[object]]:
    return [
        sa.Column("state", sa.String(16), nullable=False, server_default="ended"),
        sa.Column("lease_owner", sa.String(255)),
        sa.Column("lease_expires", sa.Double),
        sa.Column("lease_token", sa.String(32), nullable=False, server_default=""),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("host", sa.String(255)),
        sa.Column("device", sa.String(64)),
        sa.Column("last_progress", sa.Integer),
        sa.Column("last_value", sa.Double),
        sa.Column("reason", sa.String(32)),
        sa.Column("note", _TEXT),
        sa.Column("error", _TEXT),
    ]


def upgrade() -> None:
    """Add the columns; every statement bears being done again (MySQL)."""
    there = {found["name"] for found in sa.inspect(op.get_bind()).get_columns("sft_finalists")}
    for column in _columns():
        if column.name not in there:
            op.add_column("sft_finalists", column)


def downgrade() -> None:
    """Remove them."""
    with op.batch_alter_table("sft_finalists") as batch:
        for column in reversed(_columns()):
            batch.drop_column(column.name)
