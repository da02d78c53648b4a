"""The first tables, and the view `sft_results`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from sft_tune.store.migrations.results import results_view

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}

# MySQL's TEXT ends at 64 KB, its DATETIME at whole seconds.
_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
_TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")

# The searched settings at this revision: name and SQL kind; later ones come with a later revision.
_SETTINGS = (
    ("epochs", "int"),
    ("batch_size", "int"),
    ("optimizer", "text"),
    ("learning_rate", "float"),
    ("momentum", "float"),
    ("weight_decay", "float"),
    ("schedule", "text"),
    ("warmup", "float"),
    ("min_learning_rate", "float"),
    ("decay_factor", "float"),
    ("clip_norm", "float"),
    ("label_smoothing", "float"),
    ("freeze", "text"),
    ("head_multiplier", "float"),
    ("augment", "text"),
    ("precision", "text"),
)
_MODEL_SETTINGS = (("name", "text"), ("weights", "text"), ("dropout", "float"))


def upgrade() -> None:
    """Make the tables and the view.

    On MySQL each statement is final at once, so a run that was killed half way leaves some of
    them: every statement bears being done again.
    """
    _make_studies()
    _make_trials()
    _make_evaluations()
    _make_finalists()
    op.execute("DROP VIEW IF EXISTS sft_results")
    op.execute(results_view(op.get_bind().dialect.name, _SETTINGS, _MODEL_SETTINGS))


def downgrade() -> None:
    """Remove them all."""
    op.execute("DROP VIEW IF EXISTS sft_results")
    for table in ("sft_finalists", "sft_evaluations", "sft_trials", "sft_studies"):
        op.drop_table(table)


def _make_studies() -> None:
    op.create_table(
        "sft_studies",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(120), nullable=False, unique=True),
        sa.Column("task", sa.String(64), nullable=False),
        sa.Column("optuna_study_id", sa.Integer),
        sa.Column("spec_json", _TEXT, nullable=False),
        sa.Column("spec_hash", sa.String(64), nullable=False),
        sa.Column("source_text", _TEXT, nullable=False),
        sa.Column("source_path", _TEXT),
        sa.Column("root", _TEXT),
        sa.Column("versions_json", _TEXT, nullable=False),
        sa.Column("facts_json", _TEXT),
        sa.Column("artifacts", _TEXT, nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("direction", sa.String(16), nullable=False),
        sa.Column("max_trials", sa.Integer),
        sa.Column("max_hours", sa.Double),
        sa.Column("target", sa.Double),
        sa.Column("issued", sa.Integer, nullable=False),
        sa.Column("active_seconds", sa.Double, nullable=False),
        sa.Column("last_active", sa.Double),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("ended", _TEXT),
        if_not_exists=True,
        **_OPTIONS,
    )


def _make_trials() -> None:
    op.create_table(
        "sft_trials",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study_id", sa.Integer, sa.ForeignKey("sft_studies.id"), nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("optuna_trial_id", sa.Integer),
        sa.Column("number", sa.Integer),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("lease_owner", sa.String(255)),
        sa.Column("lease_expires", sa.Double),
        sa.Column("lease_token", sa.String(32), nullable=False, unique=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("host", sa.String(255)),
        sa.Column("device", sa.String(64)),
        sa.Column("started_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("config_json", _TEXT),
        sa.Column("params_json", _TEXT),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("seed", sa.BigInteger),
        sa.Column("last_progress", sa.Integer),
        sa.Column("last_value", sa.Double),
        *_outcome_columns(),
        # Not unique over studies: SQLite gives the ids of a deleted Optuna study again.
        sa.UniqueConstraint("study_id", "optuna_trial_id", name="uq_sft_trials_optuna"),
        sa.UniqueConstraint("study_id", "ordinal", name="uq_sft_trials_ordinal"),
        if_not_exists=True,
        **_OPTIONS,
    )
    _make_index("ix_sft_trials_fingerprint", "sft_trials", ["study_id", "fingerprint"])
    _make_index("ix_sft_trials_lease_owner", "sft_trials", ["lease_owner"])


def _outcome_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("reason", sa.String(32)),
        sa.Column("final_state", sa.String(16)),
        sa.Column("told", sa.Boolean, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("non_finite", _TEXT),
        sa.Column("metrics_json", _TEXT),
        sa.Column("best_progress", sa.Integer),
        sa.Column("steps", sa.Integer),
        sa.Column("horizon", sa.Integer),
        sa.Column("seconds", sa.Double),
        sa.Column("peak_memory", sa.BigInteger),
        sa.Column("samples_per_second", sa.Double),
        sa.Column("checkpoint", _TEXT),
        sa.Column("test_metrics_json", _TEXT),
        sa.Column("flags_json", _TEXT),
        sa.Column("note", _TEXT),
        sa.Column("error", _TEXT),
        sa.Column("duplicate_of", sa.Integer),
    ]


def _make_evaluations() -> None:
    op.create_table(
        "sft_evaluations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("sft_trials.id"), nullable=False),
        sa.Column("progress", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Double),
        sa.Column("step", sa.Integer),
        sa.Column("train_loss", sa.Double),
        sa.Column("validation_loss", sa.Double),
        sa.Column("metrics_json", _TEXT, nullable=False),
        sa.Column("learning_rate", sa.Double),
        sa.Column("gradient_norm", sa.Double),
        sa.Column("seconds", sa.Double),
        sa.Column("non_finite", _TEXT),
        sa.UniqueConstraint("trial_id", "progress", name="uq_sft_evaluations_progress"),
        if_not_exists=True,
        **_OPTIONS,
    )


def _make_finalists() -> None:
    op.create_table(
        "sft_finalists",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("sft_trials.id"), nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("non_finite", _TEXT),
        sa.Column("validation_metrics_json", _TEXT),
        sa.Column("test_metrics_json", _TEXT),
        sa.Column("seconds", sa.Double),
        sa.Column("checkpoint", _TEXT),
        sa.Column("started_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.UniqueConstraint("trial_id", "seed", name="uq_sft_finalists_seed"),
        if_not_exists=True,
        **_OPTIONS,
    )


def _make_index(name: str, table: str, columns: list[str]) -> None:
    # MySQL knows no CREATE INDEX IF NOT EXISTS.
    there = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}
    if name not in there:
        op.create_index(name, table, columns)
