"""Control from another shell: what is wanted of a study, its queue, and who serves it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
_TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")


def upgrade() -> None:
    """Add the columns and tables; every statement bears being done again (MySQL)."""
    _add("sft_studies", sa.Column("wanted", sa.String(16)))
    _add("sft_studies", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
    _add("sft_studies", sa.Column("extra_trials", sa.Integer, nullable=False, server_default="0"))
    _add("sft_trials", sa.Column("queue_id", sa.Integer))
    _add("sft_trials", sa.Column("stop_requested", sa.Boolean))
    op.create_table(
        "sft_queue",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study_id", sa.Integer, sa.ForeignKey("sft_studies.id"), nullable=False),
        sa.Column("params_json", _TEXT, nullable=False),
        sa.Column("retry_of", sa.Integer),
        sa.Column("ordinal", sa.Integer),
        sa.Column("created_at", _TIME, nullable=False),
        sa.UniqueConstraint("study_id", "retry_of", name="uq_sft_queue_retry"),
        if_not_exists=True,
        **_OPTIONS,
    )
    op.create_table(
        "sft_runners",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("owner", sa.String(255), nullable=False, unique=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("engine", sa.String(16), nullable=False),
        sa.Column("slots_json", _TEXT, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        if_not_exists=True,
        **_OPTIONS,
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("sft_runners")
    op.drop_table("sft_queue")
    for table, names in (
        ("sft_trials", ("stop_requested", "queue_id")),
        ("sft_studies", ("extra_trials", "priority", "wanted")),
    ):
        with op.batch_alter_table(table) as batch:
            for name in names:
                batch.drop_column(name)


def _add(table: str, column: sa.Column[object]) -> None:
    there = {found["name"] for found in sa.inspect(op.get_bind()).get_columns(table)}
    if column.name not in there:
        op.add_column(table, column)
