"""When two sums are of the same input: what a site computes on its records and has added up.

In are the task by name, the schema among its parameters, and the model; out are study, run, round, seed and attempt,
the task's version, whether a sum trains or evaluates, by what the features were scaled, and all parameters that only
steer training: where two sums could differ by so little, they count as the same. (A study with another learning rate,
over all sites but one, gave that site's exact statistics while they were in.) A model file's name would not do: its
header holds the round.
"""

from __future__ import annotations

import hashlib

import rfc8785

from quorate.secagg.terms import bound
from quorate.study.study import TaskRef


def query_of(task: TaskRef, theta: bytes) -> bytes:
    """The query's name, 32 bytes.

    Args:
        theta: The digest of the model's parameters; empty for the sum of the statistics, which needs none.
    """
    schema = rfc8785.dumps(task.parameters.get("schema"))
    return hashlib.sha256(bound(b"query", task.name.encode(), schema, theta)).digest()
