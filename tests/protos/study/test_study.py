"""The study: what everybody hashes and signs, and what cannot be agreed on."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quorate.errors import StudyError
from quorate.identity import SiteName
from quorate.secagg.release import ReleaseKey
from quorate.study.study import Study
from quorate.study.study_file import StudyFile

KEYS = {SiteName(name): bytes([number]) * 32 for number, name in enumerate(("east", "north", "south", "west"), 1)}

GOOD = """
name = "malignancy"
purpose = "Tell malignant from benign"
seed = 7
sites = ["north", "east", "south"]

[task]
name = "tabular-classifier"
[task.parameters]
model = "mlp"
hidden = [16, 8]
learning_rate = 0.05

[rounds]
count = 20
quorum = 2
deadline_s = 30

[protection]
mode = "none"
"""


TRAINING = """[privacy.training]
clip = 1.0
batch_size = 32
steps = 4
noise_multiplier = 1.1"""


TASK: dict[str, Any] = {"name": "tabular-classifier", "digest": "ab" * 32, "parameters": {"model": "logistic"}}
ALSO: dict[str, Any] = {"digest": "cd" * 32, "until": "2027-01-31"}


def digest_of(_: str) -> str:
    return "ab" * 32


def written(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def study(**changes: Any) -> Study:
    content: dict[str, Any] = {
        "consortium": "north-sea",
        "name": "malignancy",
        "purpose": "Tell malignant from benign",
        "task": TASK,
        "rounds": {"count": 3, "quorum": 2},
        "protection": {"mode": "none"},
        "sites": [{"name": name, "signing_key": key.hex()} for name, key in KEYS.items()],
    }
    return Study.model_validate(content | changes)


# --- the file ---


def test_a_study_file_becomes_a_study_with_sites_by_name_and_their_keys(tmp_path: Path) -> None:
    made = StudyFile.read(written(tmp_path, GOOD)).resolve("north-sea", KEYS, digest_of)
    assert made.site_names == ("east", "north", "south")
    assert [site.signing_key for site in made.sites] == [KEYS[name].hex() for name in made.site_names]
    assert made.task.digest == "ab" * 32
    assert made.task.parameters == {"model": "mlp", "hidden": [16, 8], "learning_rate": 0.05}
    assert made.kind == "study"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("seed = 7", "sead = 7", "sead"),
        ("seed = 7", "seed = -1", "seed"),
        ("seed = 7", "seed = 2147483648", "seed"),
        ('name = "malignancy"', 'name = "Malignancy"', "name"),
        ('name = "malignancy"', 'name = "../etc"', "name"),
        ('purpose = "Tell malignant from benign"', 'purpose = ""', "purpose"),
        ('sites = ["north", "east", "south"]', "sites = []", "sites"),
        ("count = 20", "count = 0", "rounds.count"),
        ("quorum = 2", "quorum = 0", "rounds.quorum"),
        ("quorum = 2", 'quorum = "two"', "rounds.quorum"),
        ("deadline_s = 30", "deadline_s = inf", "rounds.deadline_s"),
        ("deadline_s = 30", "deadline_s = 0", "rounds.deadline_s"),
        ("deadline_s = 30", "absent_grace_s = inf", "rounds.absent_grace_s"),
        ("deadline_s = 30", "absent_grace_s = nan", "rounds.absent_grace_s"),
        ('mode = "none"', 'mode = "secret"', "protection.mode"),
        ("seed = 7", "approvals = 0", "approvals"),
        ("seed = 7", 'expires = "soon"', "expires"),
        ('mode = "none"', 'mode = "none"\n[privacy]\ndelta = 1e-4', "privacy"),
        ('mode = "none"', 'mode = "none"\n[privacy]\ndelta = 0.0\n' + TRAINING, "privacy.delta"),
        ('mode = "none"', 'mode = "none"\n[privacy]\ndelta = 1e-4\n' + TRAINING + "\nepsilon = 3", "privacy.training"),
        (
            'mode = "none"',
            'mode = "none"\n[privacy]\ndelta = 1e-4\n' + TRAINING + "\nepsilom = 3",
            "privacy.training.epsilom",
        ),
        ('mode = "none"', "colluders = -1", "protection.colluders"),
        ('mode = "none"', "colluders = 0.5", "protection.colluders"),
        ('mode = "none"', 'mode = "none"\nvalue_bound = 0.0', "protection.value_bound"),
        ('mode = "none"', 'mode = "none"\n[optimizer]\nname = "sgd"', "optimizer.name"),
        ('mode = "none"', 'mode = "none"\n[optimizer]\nbeta1 = 1.0', "optimizer.beta1"),
        ('mode = "none"', 'mode = "none"\n[optimizer]\nname = "fedprox"', "proximal_mu"),
        ('mode = "none"', 'mode = "none"\n[optimizer]\nproximal_mu = 0.1', "proximal_mu"),
        ('mode = "none"', 'mode = "none"\n[optimizer]\nname = "fedprox"\nproximal_mu = inf', "proximal_mu"),
        ('mode = "none"', 'mode = "none"\n[release]\nmodel = "everybody"', "release.model"),
        ('mode = "none"', 'mode = "none"\n[guest]\nserver_app = "no colon"', "guest.server_app"),
    ],
)
def test_a_bad_file_is_refused_naming_the_file_and_the_key(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert GOOD.count(old) == 1
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(StudyError) as caught:
        StudyFile.read(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("count = 20", "count = 0").replace("quorum = 2", "quorum = 0").replace("seed = 7", "sead = 7")
    with pytest.raises(StudyError) as caught:
        StudyFile.read(written(tmp_path, text))
    assert "3 problems" in str(caught.value)
    assert all(key in str(caught.value) for key in ("rounds.count", "rounds.quorum", "sead"))


@pytest.mark.parametrize("content", [b"name = [", b"\xff\xfe", None], ids=["not TOML", "not UTF-8", "not there"])
def test_what_is_no_toml_file_is_refused_with_its_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "study.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StudyError, match=r"study\.toml"):
        StudyFile.read(path)


def test_a_schema_file_beside_the_study_becomes_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text("[columns.age]\ntype = 'number'\n", encoding="utf-8")
    text = GOOD.replace('model = "mlp"', 'schema_file = "schema.toml"')
    parameters = StudyFile.read(written(tmp_path, text)).task.parameters
    assert parameters["schema"] == {"columns": {"age": {"type": "number"}}}
    assert "schema_file" not in parameters


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"south"]', '"atlantis"]', "atlantis"),
        ("quorum = 2", "quorum = 4", "quorum"),
        ('"south"]', '"north"]', "distinct"),
        ('name = "tabular-classifier"', 'name = "flower:app:app"', "guest"),
        ('mode = "none"', 'mode = "none"\n[guest]\nserver_app = "server:app"', "guest"),
        ("learning_rate = 0.05", "learning_rate = inf", "parameters"),
        ("learning_rate = 0.05", "learning_rate = 9007199254740993", "parameters"),
    ],
    ids=[
        "unknown site",
        "quorum > sites",
        "site twice",
        "guest task alone",
        "guest app alone",
        "infinite",
        "too exact",
    ],
)
def test_what_cannot_be_agreed_on_is_refused_before_it_is_published(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    assert GOOD.count(old) == 1
    file = StudyFile.read(written(tmp_path, GOOD.replace(old, new)))
    with pytest.raises(StudyError) as caught:
        file.resolve("north-sea", KEYS, digest_of)
    assert named in str(caught.value)


def test_two_sites_cannot_have_one_key(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="same signing key"):
        StudyFile.read(written(tmp_path, GOOD)).resolve("north-sea", dict.fromkeys(KEYS, bytes(32)), digest_of)


# --- privacy and approval ---

ON_UPDATES = {"clip": 1.0, "noise_multiplier": 0.5}


def test_privacy_names_each_mechanism_that_is_on(tmp_path: Path) -> None:
    text = GOOD.replace('mode = "none"', 'mode = "none"\n[privacy]\ndelta = 1e-4\n' + TRAINING)
    made = StudyFile.read(written(tmp_path, text)).resolve("north-sea", KEYS, digest_of)
    assert made.privacy is not None
    assert made.privacy.summary == "DP-SGD (noise 1.1, delta 0.0001, per record or unit)"
    assert (made.privacy.update, made.privacy.average, made.privacy.update_clip) == (None, None, None)


@pytest.mark.parametrize("mechanism", ["update", "average"])
def test_noise_on_updates_goes_with_sites_that_count_the_same(mechanism: str) -> None:
    privacy = {"delta": 1e-4, mechanism: ON_UPDATES}
    with pytest.raises(ValueError, match=r'rounds\.weights = "equal"'):
        study(privacy=privacy)
    made = study(privacy=privacy, rounds={"count": 3, "quorum": 2, "weights": "equal"})
    assert made.privacy is not None
    assert made.privacy.update_clip == 1.0


def test_an_update_is_clipped_to_one_length() -> None:
    both = {"delta": 1e-4, "update": ON_UPDATES, "average": ON_UPDATES | {"clip": 2.0}}
    with pytest.raises(ValueError, match="give the same value"):
        study(privacy=both, rounds={"count": 3, "quorum": 2, "weights": "equal"})


def test_a_guest_app_takes_no_noise_from_us() -> None:
    privacy = {"delta": 1e-4, "average": ON_UPDATES}
    with pytest.raises(ValueError, match="guest app's own code"):
        study(**GUEST, privacy=privacy)


def test_a_study_needs_the_approval_of_its_quorum_unless_it_says_otherwise() -> None:
    assert study().needed_approvals == 2
    assert study(approvals=3).needed_approvals == 3
    with pytest.raises(ValueError, match="approvals is 5, but the study has 4 sites"):
        study(approvals=5)


# --- secure aggregation ---

GUEST = {"task": {"name": "flower:app:app", "digest": "cd" * 32}, "guest": {"server_app": "server:app"}}


def secure(sites: int, quorum: int, colluders: int | None = None, **changes: Any) -> Study:
    protection = {} if colluders is None else {"colluders": colluders}
    names = [f"site-{number:03}" for number in range(sites)]
    roster = [{"name": name, "signing_key": f"{number:064x}"} for number, name in enumerate(names)]
    rounds = {"count": 3, "quorum": quorum}
    return study(**{"sites": roster, "rounds": rounds, "protection": protection} | changes)


def test_a_study_that_does_not_say_how_it_is_protected_is_under_secure_aggregation(tmp_path: Path) -> None:
    text = GOOD.replace('mode = "none"', "").replace("quorum = 2", "quorum = 3")
    made = StudyFile.read(written(tmp_path, text)).resolve("north-sea", KEYS, digest_of)
    assert (made.protection.mode, made.protection.colluders) == ("secagg", 1)


@pytest.mark.parametrize(
    ("sites", "colluders", "floor"),
    [(2, 0, 2), (3, 0, 3), (3, 1, 3), (4, 1, 3), (5, 1, 4), (8, 1, 5), (8, 3, 6), (8, 6, 8), (100, 10, 56)],
)
def test_a_quorum_below_the_floor_of_sums_is_refused_with_the_number_that_it_takes(
    sites: int, colluders: int, floor: int
) -> None:
    with pytest.raises(ValueError, match=f"rounds.quorum is {floor - 1}, .* needs {floor}"):
        secure(sites, floor - 1, colluders)
    assert secure(sites, floor, colluders).rounds.quorum == floor
    assert secure(sites, floor - 1, protection={"mode": "none", "colluders": colluders}).rounds.quorum == floor - 1


def test_the_operator_reads_the_number_that_it_takes(tmp_path: Path) -> None:
    file = StudyFile.read(written(tmp_path, GOOD.replace('mode = "none"', "")))
    with pytest.raises(StudyError, match=r"rounds\.quorum is 2, .* among 3 sites of which 1 may collude needs 3"):
        file.resolve("north-sea", KEYS, digest_of)


@pytest.mark.parametrize(("sites", "colluders"), [(1, 0), (1, 1), (2, 1), (3, 2), (4, 3), (5, 1000)])
def test_so_few_sites_do_not_stand_so_many_colluders(sites: int, colluders: int) -> None:
    with pytest.raises(ValueError, match=r"protection\.colluders"):
        secure(sites, sites, colluders)


def test_two_sites_have_to_say_that_neither_colludes() -> None:
    with pytest.raises(ValueError, match=r"Lower protection\.colluders"):
        secure(2, 2)
    assert secure(2, 2, 0).protection.colluders == 0


@pytest.mark.parametrize("protection", [{}, {"mode": "secagg"}, {"mode": "secagg", "colluders": 0}])
def test_a_guest_app_is_approved_only_by_saying_that_nothing_is_protected(protection: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"its protection\.mode can only be \"none\""):
        secure(4, 4, **GUEST, protection=protection)
    assert secure(4, 1, **GUEST, protection={"mode": "none"}).kind == "guest"


# --- a model for the operator ---

OPERATOR = ReleaseKey(X25519PrivateKey.from_private_bytes(bytes(range(32))))
TO_OPERATOR = {"model": "operator", "operator_key": OPERATOR.public_key.hex()}
RELEASED = GOOD.replace('mode = "none"', '[release]\nmodel = "operator"').replace("quorum = 2", "quorum = 3")


@pytest.mark.parametrize(
    ("mode", "release"),
    [
        ("secagg", {"model": "operator"}),
        ("secagg", {"model": "operator", "operator_mark": "ab" * 32}),
        ("secagg", {"model": "sites", "operator_key": OPERATOR.public_key.hex()}),
        ("none", TO_OPERATOR),
        ("none", {"model": "sites", "operator_mark": "ab" * 32}),
        ("secagg", TO_OPERATOR | {"operator_key": "ab" * 31}),
    ],
)
def test_the_operators_key_is_named_where_the_model_is_sealed_to_it_and_nowhere_else(
    mode: str, release: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"release\.operator"):
        secure(4, 4, protection={"mode": mode}, release=release)
    assert secure(4, 4, release=TO_OPERATOR).is_release_sealed
    assert not secure(4, 4, protection={"mode": "none"}, release={"model": "operator"}).is_release_sealed
    assert not secure(4, 4).is_release_sealed


def test_a_published_study_holds_the_operators_key_and_its_mark_of_all_the_rest(tmp_path: Path) -> None:
    made = StudyFile.read(written(tmp_path, RELEASED)).resolve("north-sea", KEYS, digest_of, OPERATOR)
    assert made.release.operator_key == OPERATOR.public_key.hex()
    assert made.release.operator_mark == OPERATOR.mark(made.unmarked()).hex()
    assert b'"operator_mark":null' in made.unmarked()
    assert Study.from_canonical(made.canonical()) == made
    other = made.model_copy(update={"sites": made.sites[:2]})
    assert made.release.operator_mark != OPERATOR.mark(other.unmarked()).hex()


def test_without_the_operators_key_such_a_study_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"release\.operator_key"):
        StudyFile.read(written(tmp_path, RELEASED)).resolve("north-sea", KEYS, digest_of)


def test_a_study_that_seals_nothing_does_not_name_the_key(tmp_path: Path) -> None:
    text = GOOD + '[release]\nmodel = "operator"\n'
    made = StudyFile.read(written(tmp_path, text)).resolve("north-sea", KEYS, digest_of, OPERATOR)
    assert (made.release.operator_key, made.release.operator_mark) == (None, None)


def test_a_file_cannot_name_a_key_of_its_own(tmp_path: Path) -> None:
    text = RELEASED.replace('model = "operator"', f'model = "operator"\noperator_key = "{"ab" * 32}"')
    with pytest.raises(StudyError, match=r"release\.operator_key"):
        StudyFile.read(written(tmp_path, text))


# --- the canonical form ---


def test_the_canonical_form_and_the_digest_never_change() -> None:
    assert study().canonical().decode() == GOLDEN_CANONICAL
    assert study().digest().hex() == GOLDEN_DIGEST


def test_a_study_with_two_versions_of_its_task_never_changes_either() -> None:
    both = study(task=TASK | {"also": ALSO})
    with_also = '"task":{"also":{"digest":"' + "cd" * 32 + '","until":"2027-01-31"},"digest"'
    assert both.canonical().decode() == GOLDEN_CANONICAL.replace('"task":{"digest"', with_also)
    assert Study.from_canonical(both.canonical()) == both


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"digest": "ab" * 32}, "also.digest is that of the version which the study names"),
        ({"digest": "AB" * 32}, "pattern"),
        ({"digest": "cd" * 31}, "pattern"),
        ({"until": None}, "date"),
        ({"until": "soon"}, "date"),
        ({"until": "2027-01-31T12:00"}, "date"),
        ({"until": float("inf")}, "date"),
        ({"since": "2027-01-01"}, "Extra inputs"),
        (None, "required"),
    ],
)
def test_a_second_version_that_cannot_be_agreed_on_is_refused(changes: dict[str, Any] | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        study(task=TASK | {"also": {} if changes is None else ALSO | changes})


@pytest.mark.parametrize(("day", "count"), [("2026-11-30", 2), ("2027-01-31", 2), ("2027-02-01", 1), ("9999-12-31", 1)])
def test_the_second_version_is_accepted_up_to_its_day_and_on_it(day: str, count: int) -> None:
    both = study(task=TASK | {"also": ALSO}).task
    assert both.accepted(date.fromisoformat(day)) == ("ab" * 32, "cd" * 32)[:count]
    assert study().task.accepted(date.fromisoformat(day)) == ("ab" * 32,)


@pytest.mark.parametrize(
    "text",
    [
        f'[task]\nalso = {{ digest = "{"cd" * 32}", until = 2027-01-31 }}',
        f'[task.also]\ndigest = "{"cd" * 32}"\nuntil = 2027-01-31\n[task]',
    ],
)
def test_a_file_names_the_second_version_and_its_last_day(tmp_path: Path, text: str) -> None:
    file = StudyFile.read(written(tmp_path, GOOD.replace("[task]", text)))
    made = file.resolve("north-sea", KEYS, digest_of)
    assert made.task.model_dump(mode="json")["also"] == ALSO
    assert made.task.digest == "ab" * 32


def test_a_file_cannot_name_the_version_that_is_installed_twice(tmp_path: Path) -> None:
    text = f'[task]\nalso = {{ digest = "{"ab" * 32}", until = 2027-01-31 }}'
    with pytest.raises(StudyError, match=r"also\.digest"):
        StudyFile.read(written(tmp_path, GOOD.replace("[task]", text))).resolve("north-sea", KEYS, digest_of)


def test_what_is_read_from_the_canonical_form_is_the_same_study() -> None:
    guest = study(
        task={"name": "flower:app:app", "digest": "cd" * 32},
        guest={"server_app": "server:app", "run_config": {"rounds": 3, "lr": 0.5, "name": "x", "flag": True}},
    )
    for made in (study(), study(seed=1), study(optimizer={"name": "fedprox", "proximal_mu": 0.5}), guest):
        again = Study.from_canonical(made.canonical())
        assert again == made
        assert again.canonical() == made.canonical()
        assert again.digest() == made.digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"purpose": "Tell benign from malignant"},
        {"rounds": {"count": 3, "quorum": 3}},
        {"task": {"name": "tabular-classifier", "digest": "ac" * 32, "parameters": {"model": "logistic"}}},
        {"task": {"name": "tabular-classifier", "digest": "ab" * 32, "parameters": {"model": "mlp"}}},
        {"task": TASK | {"also": ALSO}},
        {"release": {"model": "operator"}},
        {"protection": {"mode": "none", "colluders": 2}},
        {"protection": {"mode": "secagg"}, "rounds": {"count": 3, "quorum": 3}},
        {"sites": [{"name": name, "signing_key": bytes([9, *key[1:]]).hex()} for name, key in list(KEYS.items())[:2]]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_changed_argument_is_a_different_study(changes: dict[str, Any]) -> None:
    assert study(**changes).digest() != study().digest()


def changed(edit: dict[str, Any]) -> bytes:
    return rfc8785.dumps(json.loads(study().canonical()) | edit)


@pytest.mark.parametrize(
    "canonical",
    [
        b"",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 10_000,
        study().canonical() + b" ",
        json.dumps(json.loads(study().canonical())).encode(),
        study().canonical().replace(b'"seed":0', b'"seed":0.0'),
        study().canonical().replace(b'"seed":0', b'"seed":"0"'),
        study().canonical().replace(b'"seed":0', b'"seed":0,"seed":0'),
        study().canonical().replace(b'"model":"logistic"', b'"model":NaN'),
        study().canonical().replace(b'"model":"logistic"', b'"model":9007199254740993'),
        changed({"sites": list(reversed(json.loads(study().canonical())["sites"]))}),
        changed({"format": "quorate.study/2"}),
        changed({"surprise": 1}),
        study().canonical().replace(b'"task":{', b'"task":{"also":null,'),
        changed({"rounds": {**json.loads(study().canonical())["rounds"], "quorum": 5}}),
        study().canonical().replace(b',"seed":0', b""),
    ],
    ids=[
        "nothing", "null", "empty", "not UTF-8", "deep", "trailing space", "other order", "a float", "a text",
        "a key twice", "not a number", "not exact", "sites unsorted", "another format", "an unknown key",
        "no other version", "quorum",
        "a default left out",
    ],
)  # fmt: skip
def test_what_is_not_canonical_is_refused(canonical: bytes) -> None:
    with pytest.raises(StudyError):
        Study.from_canonical(canonical)


GOLDEN_CANONICAL = (
    '{"approvals":null,"consortium":"north-sea","expires":null,"format":"quorate.study/1","guest":null,"n'
    'ame":"malignancy","optimizer":{"beta1":0.9,"beta2":0.99,"learning_rate":1,"momentum":0.9,"name":"fed'
    'avg","proximal_mu":0,"tau":0.001},"privacy":null,"protection":{"colluders":1,"mode":"none","value_bo'
    'und":4},"purpose":"Tell malignant from benign","release":{"model":"sites","operator_key":null,"opera'
    'tor_mark":null},"rounds":{"absent_grace_s":10,"checkpoint_every":10,"count":3,"deadline_s":600,"eval'
    'uate":null,"quorum":2,"weights":"records"},"seed":0,"sites":[{"name":"east","signing_key":"0101010101010101010101010'
    '101010101010101010101010101010101010101"},{"name":"north","signing_key":"020202020202020202020202020'
    '2020202020202020202020202020202020202"},{"name":"south","signing_key":"03030303030303030303030303030'
    '30303030303030303030303030303030303"},{"name":"west","signing_key":"04040404040404040404040404040404'
    '04040404040404040404040404040404"}],"task":{"digest":"ababababababababababababababababababababababab'
    'ababababababababab","name":"tabular-classifier","parameters":{"model":"logistic"}}}'
)
GOLDEN_DIGEST = "d920dd1882a0919a996d9ea475e377013a4e0d51a53e663295e7225fab66b8a6"
