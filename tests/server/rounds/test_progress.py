"""Progress: what a new process begins with is exactly what was committed."""

from __future__ import annotations

from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, blob_id
from quorate.rounds.run import RoundResult
from quorate_server.rounds.progress import StoredSum, StudyProgress, result_from_json, result_to_json

CHECKPOINT = Blob(blob_id(b"state"), 5)
SUM = StoredSum(round_number=4, blob=Blob(blob_id(b"sum!"), 4), weight=2**30, contributors=3)
PROGRESS = StudyProgress(
    prepared=True,
    dimension=7,
    total_weight=100,
    statistics=(100, -(2**62), 2**62),
    trained=4,
    evaluated=3,
    checkpoint=CHECKPOINT,
    checkpoint_round=3,
    sums=(SUM,),
    agreed_digest=bytes(range(32)),
    agreed_round=3,
    open_result={"round_number": 4},
)


def test_progress_survives_the_database() -> None:
    assert StudyProgress.model_validate_json(PROGRESS.model_dump_json()) == PROGRESS
    assert StudyProgress.model_validate_json(StudyProgress().model_dump_json()) == StudyProgress()


def test_the_stored_form_never_changes() -> None:
    assert StudyProgress.model_validate_json(GOLDEN) == PROGRESS


def test_what_a_run_needs_is_its_checkpoint_and_its_sums() -> None:
    assert PROGRESS.blobs() == {CHECKPOINT.id, SUM.blob.id}
    assert PROGRESS.after(checkpoint=None).blobs() == {SUM.blob.id}
    assert StudyProgress().blobs() == set()


def test_work_names_everything_and_carries_the_newest_sum_when_it_is_small() -> None:
    work = PROGRESS.work(b"sum!")
    assert work.sums[0].blob.inline == b"sum!"
    assert (work.checkpoint, work.checkpoint_round, work.agreed_round) == (CHECKPOINT, 3, 3)
    assert PROGRESS.work().sums[0].blob.inline is None
    assert StudyProgress().work(b"sum!").sums == ()


def test_a_result_survives_the_database() -> None:
    result = RoundResult(3, (SiteName("north"),), {"auc": 0.5}, {"train": 1.5}, 10, 20, {"south": "absent"})
    assert result_from_json(result_to_json(result)) == result


GOLDEN = (
    '{"prepared":true,"dimension":7,"total_weight":100,"statistics":[100,-4611686018427387904,46116860184'
    '27387904],"trained":4,"evaluated":3,"checkpoint":["8073e81904c87c2147419c717efe691936c3729a6cea306db'
    'afcccc7a836a4c5",5],"checkpoint_round":3,"sums":[{"round_number":4,"blob":["1769b9794e4f95265182023c'
    'cb2661eb42d2106aedd20a9e020a1545734b9094",4],"weight":1073741824,"contributors":3}],"agreed_digest":'
    '"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f","agreed_round":3,"open_result":{"'
    'round_number":4},"released":false}'
)
