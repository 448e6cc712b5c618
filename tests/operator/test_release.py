"""The operator's key for models, and which studies and runs it opens one for."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pytest

from quorate.errors import ConfigError, FrameError, InputError, KeyMismatchError
from quorate.identity import RunId
from quorate.rounds.blobs import blob_id
from quorate.secagg.release import ReleaseKey, ReleaseTerms, pack_release, released, seal_release
from quorate.secagg.study_key import StudyKey
from quorate.secagg.terms import Vote
from quorate.study.study import Study
from quorate_operator.files import write_download
from quorate_operator.release import KEY_NAME, load_key, make_key, opened
from tests.server.door import SiteKeys, a_study

RUN = RunId("malignancy-0a1b2c")
SITES = tuple(SiteKeys.make(name) for name in ("east", "north", "south"))
MODEL = bytes(range(256)) * 20


@pytest.fixture
def key(tmp_path: Path) -> ReleaseKey:
    assert make_key(tmp_path)
    return load_key(tmp_path)


def published(key: ReleaseKey, *sites: SiteKeys) -> Study:
    """As ``quorate study publish`` makes it."""
    release = {"model": "operator", "operator_key": key.public_key.hex()}
    study = a_study(*(sites or SITES), protection={"mode": "secagg"}, rounds={"count": 3, "quorum": 3}, release=release)
    return marked(study, key)


def marked(study: Study, key: ReleaseKey) -> Study:
    release = study.release.model_copy(update={"operator_mark": key.mark(study.unmarked()).hex()})
    return study.model_copy(update={"release": release})


def handed_out(study: Study, signers: tuple[SiteKeys, ...] = SITES, run: RunId = RUN) -> bytes:
    """What sites seal and sign, and the server hands out."""
    terms = ReleaseTerms.of(study, run)
    content = b"".join(seal_release(io.BytesIO(MODEL), StudyKey(bytes(32)), terms))
    signed = released(terms, blob_id(content))
    return b"".join(pack_release([Vote(s.name, s.signing.sign(signed)) for s in signers], [content]))


# --- the key ---


def test_the_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    assert make_key(tmp_path)
    content = (tmp_path / KEY_NAME).read_bytes()
    assert stat.S_IMODE((tmp_path / KEY_NAME).stat().st_mode) == 0o600
    assert not make_key(tmp_path)
    assert (tmp_path / KEY_NAME).read_bytes() == content
    assert load_key(tmp_path).public_key == load_key(tmp_path).public_key


def test_a_key_that_is_not_there_broken_or_open_to_others_is_refused_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / KEY_NAME
    with pytest.raises(ConfigError, match="Copy it from the machine"):
        load_key(tmp_path)
    make_key(tmp_path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_key(tmp_path)
    for content in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="not the key"):
            load_key(tmp_path)
        assert not make_key(tmp_path)
        assert path.read_bytes() == content
    with pytest.raises(InputError):
        make_key(tmp_path / "nowhere")


# --- opening ---


def test_a_model_that_the_sites_signed_is_written_as_they_have_it(key: ReleaseKey, tmp_path: Path) -> None:
    study = published(key)
    model = opened([handed_out(study)], study, RUN, key)
    assert write_download(tmp_path / "model.npz", model) == len(MODEL)
    assert (tmp_path / "model.npz").read_bytes() == MODEL
    assert model.signers == ("east", "north", "south")


def test_the_key_of_another_machine_is_told_apart_from_a_broken_model(key: ReleaseKey, tmp_path: Path) -> None:
    study = published(key)
    (tmp_path / "other").mkdir()
    make_key(tmp_path / "other")
    with pytest.raises(
        KeyMismatchError, match=r"another key.*of the machine from which the study was published"
    ) as told:
        opened([handed_out(study)], study, RUN, load_key(tmp_path / "other"))
    assert study.release.operator_fingerprint in str(told.value)


def test_a_study_with_sites_of_the_servers_is_refused_though_they_signed(key: ReleaseKey) -> None:
    """The study comes from the server. It can name keys of its own in it, but cannot mark it."""
    forged = tuple(SiteKeys.make(name) for name in ("east", "north", "south"))
    unmarked = published(key, *forged)
    unmarked = unmarked.model_copy(update={"release": unmarked.release.model_copy(update={"operator_mark": None})})
    mark_of_the_real_one = unmarked.release.model_copy(update={"operator_mark": published(key).release.operator_mark})
    for study in (unmarked, unmarked.model_copy(update={"release": mark_of_the_real_one})):
        with pytest.raises(KeyMismatchError, match="was not published with this credential's key"):
            opened([handed_out(study, forged)], study, RUN, key)


@pytest.mark.parametrize("what", ["tampered", "truncated", "unsigned", "of another run"])
def test_what_is_not_the_sites_model_leaves_the_old_file_and_no_other(
    key: ReleaseKey, tmp_path: Path, what: str
) -> None:
    study = published(key)
    whole = handed_out(study)
    content = {
        "tampered": whole[:-1] + bytes([whole[-1] ^ 1]),
        "truncated": whole[:-100],
        "unsigned": handed_out(study, SITES[:1]),
        "of another run": handed_out(study, run=RunId("malignancy-ffffff")),
    }[what]
    path = tmp_path / "model.npz"
    path.write_bytes(b"old")
    with pytest.raises((FrameError, KeyMismatchError)):
        write_download(path, opened([content], study, RUN, key))
    assert path.read_bytes() == b"old"
    assert {each.name for each in tmp_path.iterdir()} == {"model.npz", KEY_NAME}
