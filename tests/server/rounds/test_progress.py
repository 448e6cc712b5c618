"""Progress: what a new process begins with is exactly what was committed."""

from __future__ import annotations

from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, blob_id
from quorate.rounds.run import RoundResult
from quorate_server.rounds.progress import StoredSum, StudyProgress, result_from_json, result_to_json

STATE, UPDATES, OPENING, KEYS = (Blob(blob_id(content), len(content)) for content in (b"state", b"sum!", b"open", b"k"))
SUM = StoredSum(round_number=4, attempt=1, updates=UPDATES, opening=OPENING)
PROGRESS = StudyProgress(
    dimension=7,
    trained=4,
    evaluated=3,
    checkpoint=STATE,
    checkpoint_round=3,
    checkpoint_sealer=("north", b"\x01\x02"),
    keys=KEYS,
    summed=5,
    attempt=1,
    reached=4,
    sums=(SUM,),
    waiting=({"round_number": 4},),
)


def test_progress_survives_the_database() -> None:
    assert StudyProgress.model_validate_json(PROGRESS.model_dump_json()) == PROGRESS
    assert StudyProgress.model_validate_json(StudyProgress().model_dump_json()) == StudyProgress()


def test_what_an_older_version_stored_of_a_run_under_secure_aggregation_is_read() -> None:
    assert StudyProgress.model_validate_json(OLDER_SECAGG) == PROGRESS


def test_a_run_that_an_older_version_began_without_protection_is_known_as_such() -> None:
    read = StudyProgress.model_validate_json(OLDER_PLAIN)
    assert read == StudyProgress(dimension=7, trained=4, evaluated=3, is_of_an_older_version=True)
    assert read.blobs() == set()
    again = StudyProgress.model_validate_json(read.model_dump_json())
    assert again == read


def test_a_run_of_which_nothing_was_committed_is_of_no_version() -> None:
    assert StudyProgress.model_validate_json('{"prepared":false,"open_result":null,"sums":[]}') == StudyProgress()


def test_what_a_run_needs_is_its_checkpoint_its_keys_and_its_sums() -> None:
    assert PROGRESS.blobs() == {STATE.id, KEYS.id, UPDATES.id, OPENING.id}
    assert PROGRESS.after(checkpoint=None, keys=None).blobs() == {UPDATES.id, OPENING.id}
    assert StudyProgress().blobs() == set()


def test_a_result_survives_the_database() -> None:
    result = RoundResult(3, (SiteName("north"),), {"auc": 0.5}, {"upload": 1.5}, 10, 20, {"south": "absent"})
    assert result_from_json(result_to_json(result)) == result


def stored(blob: Blob) -> str:
    return f'["{blob.id.hex()}",{blob.size}]'


OLDER_SECAGG = (
    '{"prepared":true,"dimension":7,"total_weight":0,"statistics":[],"trained":4,"evaluated":3,"checkpoint":'
    + stored(STATE)
    + ',"checkpoint_round":3,"checkpoint_sealer":["north","0102"],"sums":[],"agreed_digest":"","agreed_round":0,'
    '"open_result":null,"released":false,"keys":'
    + stored(KEYS)
    + ',"summed":5,"attempt":1,"reached":4,"secure_sums":[{"round_number":4,"attempt":1,"ciphertext":'
    + stored(UPDATES)
    + ',"opening":'
    + stored(OPENING)
    + '}],"waiting":[{"round_number":4}]}'
)
OLDER_PLAIN = (
    '{"prepared":true,"dimension":7,"total_weight":100,"statistics":[100,-4611686018427387904],"trained":4,'
    '"evaluated":3,"checkpoint":'
    + stored(STATE)
    + ',"checkpoint_round":3,"sums":[{"round_number":4,"blob":'
    + stored(UPDATES)
    + ',"weight":1073741824,"contributors":3}],"agreed_digest":"0102","agreed_round":3,'
    '"open_result":{"round_number":4},"released":false}'
)
