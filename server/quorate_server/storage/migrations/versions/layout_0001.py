"""the first layout that can be upgraded"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _who_takes_part()
    _studies()
    _runs()


def _who_takes_part() -> None:
    op.create_table(
        "sites",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("standing", sa.String(16), nullable=False),
        sa.Column("signing_key", sa.LargeBinary(32), unique=True),
        sa.Column("sealing_key", sa.LargeBinary(32)),
        sa.Column("sealing_proof", sa.LargeBinary(64)),
    )
    op.create_table(
        "earlier_keys",
        sa.Column("signing_key", sa.LargeBinary(32), primary_key=True),
        sa.Column("site", sa.String(63), sa.ForeignKey("sites.name"), primary_key=True),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(32), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("name", sa.String(63), nullable=False, index=True),
        sa.Column("expires_unix_s", sa.Float, nullable=False),
        sa.Column("revoked_unix_s", sa.Float),
    )
    op.create_table(
        "invitations",
        sa.Column("serial", sa.String(32), sa.ForeignKey("certificates.serial"), primary_key=True),
        sa.Column("site", sa.String(63), sa.ForeignKey("sites.name"), nullable=False, index=True),
        sa.Column("kept_signing_key", sa.LargeBinary(32)),
        sa.Column("spent_unix_s", sa.Float),
        sa.Column("request_digest", sa.LargeBinary(32)),
        sa.Column("issued_serial", sa.String(32)),
        sa.Column("issued_pem", sa.LargeBinary),
    )


def _studies() -> None:
    op.create_table(
        "studies",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("name", sa.String(63), nullable=False, unique=True),
        sa.Column("canonical", sa.LargeBinary, nullable=False),
        sa.Column("published_unix_s", sa.Float, nullable=False),
    )
    op.create_table(
        "answers",
        sa.Column("study_digest", sa.LargeBinary(32), sa.ForeignKey("studies.digest"), primary_key=True),
        sa.Column("site", sa.String(63), primary_key=True),
        sa.Column("answer", sa.String(16), nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("at_unix_s", sa.Float, nullable=False),
    )
    op.create_table(
        "readiness",
        sa.Column("study_digest", sa.LargeBinary(32), sa.ForeignKey("studies.digest"), primary_key=True),
        sa.Column("site", sa.String(63), primary_key=True),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("at_unix_s", sa.Float, nullable=False),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run", sa.String(80), primary_key=True),
        sa.Column("study_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("started_unix_s", sa.Float, nullable=False),
        sa.Column("changed_unix_s", sa.Float, nullable=False),
    )
    op.create_table(
        "replies",
        sa.Column("message_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("run", sa.String(80), sa.ForeignKey("runs.run"), nullable=False, index=True),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("site", sa.String(63), nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("reply", sa.LargeBinary, nullable=False),
        sa.Column("forgiven", sa.Boolean, nullable=False),
    )
    op.create_table(
        "results",
        sa.Column("run", sa.String(80), sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("result", sa.Text, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("site", sa.String(63), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "ledger_heads",
        sa.Column("signing_key", sa.LargeBinary(32), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
    )
