"""Our tables beside Optuna's, as typed tables; the migrations make them, a test compares both.

SQLAlchemy's typed tables, not its mapped classes: importing the ORM costs a tenth of a second,
which `sft-tune best` would pay each time.

Times: ``..._at`` columns are naive UTC, as in Optuna's tables; ``lease_expires``,
``expires`` and ``last_active``, which are compared and subtracted, are seconds since 1970.
``..._json`` columns are text, JSON by `values.dumps`. Non-finite floats: see `values`.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Integer,
    MetaData,
    Named,
    String,
    Table,
    Text,
    TypedColumns,
    and_,
)

metadata = MetaData()

WAITING = "waiting"
CLAIMED = "claimed"
RUNNING = "running"
INTERRUPTED = "interrupted"
ENDED = "ended"

PAUSED = "paused"
STOPPED = "stopped"


class _Studies(TypedColumns):
    id: Named[int] = Column(Integer, primary_key=True)
    name: Named[str] = Column(String(120))
    task: Named[str] = Column(String(64))
    optuna_study_id: Named[int | None] = Column(Integer)
    spec_json: Named[str] = Column(Text)
    spec_hash: Named[str] = Column(String(64))
    source_text: Named[str] = Column(Text)
    source_path: Named[str | None] = Column(Text)
    root: Named[str | None] = Column(Text)
    versions_json: Named[str] = Column(Text)
    facts_json: Named[str | None] = Column(Text)
    artifacts: Named[str] = Column(Text)
    metric: Named[str] = Column(String(64))
    direction: Named[str] = Column(String(16))
    max_trials: Named[int | None] = Column(Integer)
    max_hours: Named[float | None] = Column(Double)
    target: Named[float | None] = Column(Double)
    issued: Named[int] = Column(Integer)
    active_seconds: Named[float] = Column(Double)
    last_active: Named[float | None] = Column(Double)
    created_at: Named[datetime] = Column(DateTime)
    updated_at: Named[datetime] = Column(DateTime)
    ended: Named[str | None] = Column(Text)
    wanted: Named[str | None] = Column(String(16))
    priority: Named[int] = Column(Integer, server_default="0")
    extra_trials: Named[int] = Column(Integer, server_default="0")


class _Trials(TypedColumns):
    id: Named[int] = Column(Integer, primary_key=True)
    study_id: Named[int] = Column(ForeignKey("sft_studies.id"))
    ordinal: Named[int] = Column(Integer)
    optuna_trial_id: Named[int | None] = Column(Integer)
    number: Named[int | None] = Column(Integer)
    # Who has it.
    state: Named[str] = Column(String(16))
    lease_owner: Named[str | None] = Column(String(255))
    lease_expires: Named[float | None] = Column(Double)
    lease_token: Named[str] = Column(String(32))
    attempts: Named[int] = Column(Integer)
    host: Named[str | None] = Column(String(255))
    device: Named[str | None] = Column(String(64))
    started_at: Named[datetime | None] = Column(DateTime)
    ended_at: Named[datetime | None] = Column(DateTime)
    # What it tries.
    config_json: Named[str | None] = Column(Text)
    params_json: Named[str | None] = Column(Text)
    fingerprint: Named[str | None] = Column(String(64))
    seed: Named[int | None] = Column(BigInteger)
    # How far it is.
    last_progress: Named[int | None] = Column(Integer)
    last_value: Named[float | None] = Column(Double)
    # How it ended.
    reason: Named[str | None] = Column(String(32))
    final_state: Named[str | None] = Column(String(16))
    told: Named[bool] = Column(Boolean)
    value: Named[float | None] = Column(Double)
    non_finite: Named[str | None] = Column(Text)
    metrics_json: Named[str | None] = Column(Text)
    best_progress: Named[int | None] = Column(Integer)
    steps: Named[int | None] = Column(Integer)
    horizon: Named[int | None] = Column(Integer)
    seconds: Named[float | None] = Column(Double)
    peak_memory: Named[int | None] = Column(BigInteger)
    samples_per_second: Named[float | None] = Column(Double)
    checkpoint: Named[str | None] = Column(Text)
    test_metrics_json: Named[str | None] = Column(Text)
    flags_json: Named[str | None] = Column(Text)
    note: Named[str | None] = Column(Text)
    error: Named[str | None] = Column(Text)
    duplicate_of: Named[int | None] = Column(Integer)
    queue_id: Named[int | None] = Column(Integer)
    stop_requested: Named[bool | None] = Column(Boolean)
    stuck: Named[int] = Column(Integer, server_default="0")
    begun_progress: Named[int | None] = Column(Integer)


class _Evaluations(TypedColumns):
    id: Named[int] = Column(Integer, primary_key=True)
    trial_id: Named[int] = Column(ForeignKey("sft_trials.id"))
    progress: Named[int] = Column(Integer)
    epoch: Named[float | None] = Column(Double)
    step: Named[int | None] = Column(Integer)
    train_loss: Named[float | None] = Column(Double)
    validation_loss: Named[float | None] = Column(Double)
    metrics_json: Named[str] = Column(Text)
    learning_rate: Named[float | None] = Column(Double)
    gradient_norm: Named[float | None] = Column(Double)
    seconds: Named[float | None] = Column(Double)
    non_finite: Named[str | None] = Column(Text)
    gradient_norm_max: Named[float | None] = Column(Double)
    update_ratio: Named[float | None] = Column(Double)
    samples_per_second: Named[float | None] = Column(Double)
    memory: Named[int | None] = Column(BigInteger)
    examples: Named[int | None] = Column(Integer)


class _Finalists(TypedColumns):
    id: Named[int] = Column(Integer, primary_key=True)
    trial_id: Named[int] = Column(ForeignKey("sft_trials.id"))
    seed: Named[int] = Column(BigInteger)
    value: Named[float | None] = Column(Double)
    non_finite: Named[str | None] = Column(Text)
    validation_metrics_json: Named[str | None] = Column(Text)
    test_metrics_json: Named[str | None] = Column(Text)
    seconds: Named[float | None] = Column(Double)
    checkpoint: Named[str | None] = Column(Text)
    started_at: Named[datetime | None] = Column(DateTime)
    ended_at: Named[datetime | None] = Column(DateTime)
    # Who has it, as in `_Trials`.
    state: Named[str] = Column(String(16), server_default=ENDED)
    lease_owner: Named[str | None] = Column(String(255))
    lease_expires: Named[float | None] = Column(Double)
    lease_token: Named[str] = Column(String(32), server_default="")
    attempts: Named[int] = Column(Integer, server_default="0")
    host: Named[str | None] = Column(String(255))
    device: Named[str | None] = Column(String(64))
    # How far it is, and how it ended.
    last_progress: Named[int | None] = Column(Integer)
    last_value: Named[float | None] = Column(Double)
    reason: Named[str | None] = Column(String(32))
    note: Named[str | None] = Column(Text)
    error: Named[str | None] = Column(Text)


class _Queue(TypedColumns):
    id: Named[int] = Column(Integer, primary_key=True)
    study_id: Named[int] = Column(ForeignKey("sft_studies.id"))
    params_json: Named[str] = Column(Text)
    retry_of: Named[int | None] = Column(Integer)
    ordinal: Named[int | None] = Column(Integer)
    created_at: Named[datetime] = Column(DateTime)


class _Runners(TypedColumns):
    id: Named[int] = Column(Integer, primary_key=True)
    owner: Named[str] = Column(String(255))
    host: Named[str] = Column(String(255))
    engine: Named[str] = Column(String(16))
    slots_json: Named[str] = Column(Text)
    started_at: Named[datetime] = Column(DateTime)
    expires: Named[float] = Column(Double)


studies = Table("sft_studies", metadata, _Studies)
"""One row a study: the study file as parsed, its budget and how much of it is issued."""

trials = Table("sft_trials", metadata, _Trials)
"""One row a ticket of the budget, which becomes a trial when `claims.link` gives it a number."""

unended = and_(trials.c.state != ENDED, trials.c.ended_at.is_(None))
"""The condition on tickets and trials that have not ended; an index finds them by its second half.
"""

evaluations = Table("sft_evaluations", metadata, _Evaluations)
"""One row a rung of a trial."""

finalists = Table("sft_finalists", metadata, _Finalists)
"""One row a confirmation run of a trial under another seed; ``value`` is on validation."""

queue = Table("sft_queue", metadata, _Queue)
"""One row a configuration asked for from outside; ``ordinal`` is the ticket that got it."""

runners = Table("sft_runners", metadata, _Runners)
"""One row a runner that serves studies of this database, while it lives."""
