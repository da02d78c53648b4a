"""How many examples a rung is measured on; the view with a column for every setting."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from sft_tune.store.migrations.results import results_view

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Name and SQL kind; settings that come later come with a later revision.
_SETTINGS = (
    ("epochs", "int"),
    ("batch_size", "int"),
    ("batch_tokens", "int"),
    ("batching", "text"),
    ("optimizer", "text"),
    ("learning_rate", "float"),
    ("momentum", "float"),
    ("nesterov", "bool"),
    ("beta1", "float"),
    ("beta2", "float"),
    ("epsilon", "float"),
    ("weight_decay", "float"),
    ("decay_all", "bool"),
    ("l1", "float"),
    ("schedule", "text"),
    ("warmup", "float"),
    ("min_learning_rate", "float"),
    ("decay_factor", "float"),
    ("decay_epochs", "int"),
    ("cycles", "int"),
    ("power", "float"),
    ("cooldown", "float"),
    ("clip_norm", "float"),
    ("clip_value", "float"),
    ("label_smoothing", "float"),
    ("loss", "text"),
    ("class_weights", "text"),
    ("focal_gamma", "float"),
    ("r_drop", "float"),
    ("freeze", "text"),
    ("freeze_blocks", "int"),
    ("unfreeze_at", "float"),
    ("unfrozen_learning_rate", "float"),
    ("freeze_batch_norm", "bool"),
    ("layer_decay", "float"),
    ("head_multiplier", "float"),
    ("averaging", "text"),
    ("ema_decay", "float"),
    ("swa_start", "float"),
    ("patience", "int"),
    ("min_change", "float"),
    ("augment", "text"),
    ("auto_augment", "text"),
    ("magnitude", "int"),
    ("color_jitter", "float"),
    ("erasing", "float"),
    ("token_masking", "float"),
    ("mix", "text"),
    ("mix_alpha", "float"),
    ("micro_batch", "int"),
    ("gradient_checkpointing", "bool"),
    ("precision", "text"),
)
_MODEL_SETTINGS = (
    ("name", "text"),
    ("weights", "text"),
    ("dropout", "float"),
    ("stochastic_depth", "float"),
    ("head_init", "text"),
    ("reinit_blocks", "int"),
    ("lora_rank", "int"),
    ("lora_alpha", "float"),
    ("lora_dropout", "float"),
    ("lora_targets", "text"),
    ("lora_merge", "bool"),
)


def upgrade() -> None:
    """Add the column and make the view again; every statement bears being done again (MySQL)."""
    there = {found["name"] for found in sa.inspect(op.get_bind()).get_columns("sft_evaluations")}
    if "examples" not in there:
        op.add_column("sft_evaluations", sa.Column("examples", sa.Integer))
    op.execute("DROP VIEW IF EXISTS sft_results")
    op.execute(results_view(op.get_bind().dialect.name, _SETTINGS, _MODEL_SETTINGS))


def downgrade() -> None:
    """Remove them; the view of the revision before lacked only columns, and nothing needs it."""
    op.execute("DROP VIEW IF EXISTS sft_results")
    with op.batch_alter_table("sft_evaluations") as batch:
        batch.drop_column("examples")
