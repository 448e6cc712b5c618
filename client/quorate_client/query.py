"""When two sums are of the same input: what a site computes on its records and has added up.

In are the task with its parameters (the schema is one of them) and the model; out are study, run, round, seed and
attempt, whether a sum trains or evaluates, and by what the features were scaled: where two sums could differ by so
little, they count as the same. A model file's name would not do: its header holds the round.
"""

from __future__ import annotations

import hashlib

import rfc8785

from quorate.secagg.terms import bound
from quorate.study import TaskRef


def query_of(task: TaskRef, theta: bytes) -> bytes:
    """The query's name, 32 bytes.

    Args:
        theta: The digest of the model's parameters; empty for the sum of the statistics, which needs none.
    """
    parameters = rfc8785.dumps(task.parameters)
    return hashlib.sha256(bound(b"query", task.name.encode(), task.digest.encode(), parameters, theta)).digest()
