"""What Alembic runs to reach the revisions: on a connection whose transaction is already begun, and ends outside."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
