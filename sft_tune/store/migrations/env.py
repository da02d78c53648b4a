"""What Alembic runs for each command: the migrations, on the connection that our code gives."""

from __future__ import annotations

from alembic import context

from sft_tune.store.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
