"""Of appraisals that say the same the first and the last are kept, and never more than so many."""

from __future__ import annotations

import os
from pathlib import Path

from quorate_client.appraisals.kept import KeptAppraisals, paths_in, read_kept
from quorate_client.appraisals.record import AppraisalRecord

from .kit import NOW, RUN, SITE_KEY, STRICT, appraisal

FRESH_S = 300


def keep(kept: KeptAppraisals, *records: AppraisalRecord) -> list[AppraisalRecord]:
    for record in records:
        kept.keep(record, record.signed(SITE_KEY))
    return [read_kept(path) for path in paths_in(kept.folder)]


def test_of_appraisals_that_say_the_same_the_first_and_the_last_are_kept(tmp_path: Path) -> None:
    row = [appraisal(FRESH_S * number) for number in range(10)]
    assert keep(KeptAppraisals(tmp_path / "attestation"), *row) == [row[0], row[9]]


def test_another_machine_another_policy_and_another_code_begin_a_new_row(tmp_path: Path) -> None:
    rows = [
        [appraisal(1), appraisal(2), appraisal(3)],
        [appraisal(4, machine=9), appraisal(5, machine=9)],
        [appraisal(6, machine=9, own_policy=STRICT, code="attestation_key_unknown")],
        [appraisal(7), appraisal(8), appraisal(9)],
    ]
    found = keep(KeptAppraisals(tmp_path / "attestation"), *(record for row in rows for record in row))
    assert found == [rows[0][0], rows[0][2], *rows[1], *rows[2], rows[3][0], rows[3][2]]


def test_refusals_make_room_first_and_the_first_record_stays(tmp_path: Path) -> None:
    kept = KeptAppraisals(tmp_path / "attestation", max_records=4)
    trusted = [appraisal(number, machine=number) for number in range(3)]
    refused = [
        appraisal(10 + number, machine=number, own_policy=STRICT, code="attestation_key_unknown") for number in range(9)
    ]
    assert keep(kept, *trusted, *refused) == [*trusted, refused[-1]]
    later = [appraisal(30 + number, machine=30 + number) for number in range(5)]
    assert keep(kept, *later) == [trusted[0], *later[-3:]]


def test_records_are_for_the_daemons_user_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        keep(KeptAppraisals(tmp_path / "attestation"), appraisal())
    finally:
        os.umask(mask)
    (path,) = paths_in(tmp_path / "attestation", RUN)
    assert path.name == "20261201T120001.000000Z-trusted.json"
    assert [oct(each.stat().st_mode & 0o777) for each in (path, path.parent, path.parent.parent)] == [
        "0o600",
        "0o700",
        "0o700",
    ]


def test_old_records_go_and_their_folder_with_the_last(tmp_path: Path) -> None:
    kept = KeptAppraisals(tmp_path / "attestation")
    kept.forget_older_than(NOW.timestamp())  # there is nothing yet
    keep(kept, appraisal(1), appraisal(2, machine=9))
    first, last = paths_in(kept.folder)
    os.utime(first, (0, 1000.0))
    kept.forget_older_than(2000.0)
    assert paths_in(kept.folder) == [last]
    os.utime(last, (0, 1000.0))
    kept.forget_older_than(2000.0)
    assert not last.parent.exists()
    assert keep(kept, appraisal(3, machine=9)) == [appraisal(3, machine=9)]
