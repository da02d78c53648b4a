"""What is watched at every rung: gradients at their largest, updates, speed, memory."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("gradient_norm_max", sa.Double),
    ("update_ratio", sa.Double),
    ("samples_per_second", sa.Double),
    ("memory", sa.BigInteger),
)


def upgrade() -> None:
    """Add the columns; every statement bears being done again (MySQL)."""
    there = {found["name"] for found in sa.inspect(op.get_bind()).get_columns("sft_evaluations")}
    for name, kind in _COLUMNS:
        if name not in there:
            op.add_column("sft_evaluations", sa.Column(name, kind))


def downgrade() -> None:
    """Remove them."""
    with op.batch_alter_table("sft_evaluations") as batch:
        for name, _ in reversed(_COLUMNS):
            batch.drop_column(name)
