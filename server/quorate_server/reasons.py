"""Why a run paused or failed, as text that the database and the pipe carry."""

from __future__ import annotations

import base64

from quorate.errors import QuorateError
from quorate.v1 import common_pb2
from quorate.wire import detail_of, error_of


def to_text(error: QuorateError) -> str:
    return base64.b64encode(detail_of(error).SerializeToString()).decode()


def from_text(text: str) -> QuorateError:
    return error_of(common_pb2.ErrorDetail.FromString(base64.b64decode(text)))
