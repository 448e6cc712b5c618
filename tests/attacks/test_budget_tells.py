"""Finding out how many records a site has, from what it tells of its privacy budget.

The noise of a step is in the study, the accountant is public, and how often a record is in a step follows from the
number of records. So whatever a site tells of an epsilon, or shows by refusing in one round and not in another, is an
equation for that number. Told in tenths after each round, 120, 200 and 400 records were each found exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from quorate.errors import BudgetExhaustedError, QuorateError
from quorate.study.readiness import Readiness
from quorate.study.study import Study
from quorate.v1 import operator_pb2, rounds_pb2
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.ledger.ledger import open_ledger
from quorate_client.ledger.limits import shipped_accountants
from quorate_client.site.database import make_state
from quorate_client.site.folder import SiteFolder
from tests.client.approval.test_readiness import approve, dataset, private, register, told, write_policy
from tests.client.approval.test_readiness import joined as joined  # the fixture
from tests.client.consortium import RunningServer
from tests.client.ledger_kit import KEY, NO_LIMITS, NOW, a_charge, opened
from tests.client.rounds.test_training import Site, Task, study

SIZES = (120, 140, 200, 201, 280, 400)
ROUNDS = 10
TRAINING = {"clip": 1.0, "batch_size": 20, "steps": 5, "noise_multiplier": 1.1}


def outcomes(folder: Path, records: int, policy: PrivacyPolicy, *studies: Study) -> list[str]:
    """What the server sees of a site with so many records: in which rounds it refuses, and by which code."""
    folder.mkdir()
    make_state(folder / "state.sqlite")
    ledger = open_ledger(folder / "ledger.sqlite", folder / "state.sqlite", KEY, shipped_accountants())
    site, seen = Site(folder, ledger, policy, Task(records=records)), []
    trainers = [(of, site.trainer(of)) for of in studies]
    for number in range(1, ROUNDS + 1):
        for of, trainer in trainers:
            try:
                site.train(of, number, trainer=trainer)
            except QuorateError as error:
                seen.append(error.code)
            else:
                seen.append("")
    ledger.close()
    return seen


def private_study(noise: float = 1.1) -> Study:
    return study(rounds=ROUNDS, delta=1e-5, training=TRAINING | {"noise_multiplier": noise})


@pytest.mark.parametrize("limit", ["epsilon_per_year", "epsilon_ever"])
def test_the_round_in_which_a_budget_ends_does_not_tell_the_number_of_records(tmp_path: Path, limit: str) -> None:
    """A study is refused at its first round or at none: one bit for each study that a site approves."""
    policy = PrivacyPolicy.model_validate({limit: 8.0})
    seen = {n: outcomes(tmp_path / str(n), n, policy, private_study()) for n in SIZES}
    assert {len(set(codes)) for codes in seen.values()} == {1}
    assert {codes[0] for codes in seen.values()} == {"", BudgetExhaustedError.code}  # the limit is between them


def test_nor_does_it_where_two_studies_take_turns(tmp_path: Path) -> None:
    """The second study's rounds would otherwise find out how far the first one's have come."""
    policy = PrivacyPolicy(epsilon_ever=3.5)  # at 200 records there is room for either one, and not for both
    first, second = private_study(1.5), private_study(1.6)
    seen = {n: outcomes(tmp_path / str(n), n, policy, first, second) for n in SIZES}
    assert all(len(set(codes[::2])) == len(set(codes[1::2])) == 1 for codes in seen.values())
    assert seen[200] == ["", BudgetExhaustedError.code] * ROUNDS


async def test_before_a_run_a_site_tells_only_whether_it_would_take_part(
    joined: SiteFolder, server: RunningServer
) -> None:
    register(joined, *(dataset(f"of-{n}", n) for n in SIZES))
    write_policy(joined, "largest_delta = 0.01\nepsilon_ever = 9.0")
    training = TRAINING | {"noise_multiplier": 2.0}
    studies = [private(server.services, f"of-{n}", privacy={"delta": 1e-5, "training": training}) for n in SIZES]
    for each, n in zip(studies, SIZES, strict=True):
        approve(joined, each, f"of-{n}")
    assert set(await told(joined, server, *studies)) == {Readiness()}


def numbers_of(message: Descriptor, path: str = "") -> Iterator[str]:
    """The fields with room for a number that is not whole, in a message and all within it."""
    for field in message.fields:
        if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
            yield f"{path}{field.name}"
        elif field.message_type is not None:
            yield from numbers_of(field.message_type, f"{path}{field.name}.")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (rounds_pb2.SiteEvent, {"heartbeat.sent_unix_s", "reply.working_s"}),
        (rounds_pb2.ReportReadinessRequest, set()),
        (operator_pb2.RoundResult, {"metrics.value", "phase_seconds.value"}),
    ],
)
def test_nothing_that_a_site_sends_beside_its_work_has_room_for_an_epsilon(message: Any, expected: set[str]) -> None:
    assert set(numbers_of(message.DESCRIPTOR)) == expected


def test_a_head_of_the_ledger_does_not_confirm_a_guess_of_its_entries(tmp_path: Path) -> None:
    """The server is shown each head. All of an entry but the sampling rate can be guessed: one number after another
    would be tried until the hash is right."""
    hashes = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        with opened(tmp_path / name) as ledger:
            ledger.reserve(a_charge(), NO_LIMITS, NOW)
            head = ledger.entries.head()
            assert head is not None
            hashes.append(head.hash)
    assert hashes[0] != hashes[1]
