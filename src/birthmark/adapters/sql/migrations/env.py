"""Alembic's entry: runs the migrations on the connection that ``migrate`` hands over."""

from alembic import context

from birthmark.adapters.sql.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
