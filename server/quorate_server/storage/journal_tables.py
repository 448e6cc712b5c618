"""Tables and statements of the journal."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from quorate_server.storage.database import METADATA

RUNS = Table(
    "runs",
    METADATA,
    Column("run", String(80), primary_key=True),
    Column("study_digest", LargeBinary(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("progress", Text, nullable=False, default=""),
    Column("started_unix_s", Float, nullable=False),
    Column("changed_unix_s", Float, nullable=False),
)
REPLIES = Table(
    "replies",
    METADATA,
    Column("message_id", LargeBinary(32), primary_key=True),
    Column("run", ForeignKey("runs.run"), nullable=False, index=True),
    Column("round", Integer, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("site", String(63), nullable=False),
    Column("code", String(64), nullable=False),
    Column("reply", LargeBinary, nullable=False),
    Column("forgiven", Boolean, nullable=False, default=False),
)
RESULTS = Table(
    "results",
    METADATA,
    Column("run", ForeignKey("runs.run"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("result", Text, nullable=False),
)
SESSIONS = Table(
    "sessions",
    METADATA,
    Column("site", String(63), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("version", String(40), nullable=False, server_default=""),
    Column("connected_unix_s", Float, nullable=False, server_default="0"),
)
# By signing key, not by site: whose key a head was signed with shows whose ledger it is of. A site is told of the heads
# of all keys that it ever had.
LEDGER_HEADS = Table(
    "ledger_heads",
    METADATA,
    Column("signing_key", LargeBinary(32), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("signature", LargeBinary(64), nullable=False),
)
# The statements of every round. Made once: making one takes longer than executing it.
WRITTEN = select(REPLIES.c.message_id).where(REPLIES.c.message_id.in_(bindparam("names", expanding=True)))
ADD_REPLY = insert(REPLIES)
STEP_FORWARD = (
    update(RUNS)
    .where(RUNS.c.run == bindparam("of"))
    .values(progress=bindparam("progress"), changed_unix_s=bindparam("changed_unix_s"))
)
DROP_RESULT = delete(RESULTS).where(RESULTS.c.run == bindparam("of"), RESULTS.c.round == bindparam("number"))
ADD_RESULT = insert(RESULTS)
DROP_EARLIER_REPLIES = delete(REPLIES).where(REPLIES.c.run == bindparam("of"), REPLIES.c.round < bindparam("number"))
KNOWN_HEADS = select(LEDGER_HEADS.c.signing_key, LEDGER_HEADS.c.number).where(
    LEDGER_HEADS.c.signing_key.in_(bindparam("keys", expanding=True))
)
DROP_HEAD = delete(LEDGER_HEADS).where(LEDGER_HEADS.c.signing_key == bindparam("key"))
ADD_HEAD = insert(LEDGER_HEADS)
