"""which version each site ran when it connected last, and when that was"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("version", sa.String(40), nullable=False, server_default=""))
    op.add_column("sessions", sa.Column("connected_unix_s", sa.Float, nullable=False, server_default="0"))
