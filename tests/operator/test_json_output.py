"""Other programs read these keys: a change here is a change of the contract with them."""

from __future__ import annotations

import json

from quorate.errors import QuorumMissingError
from quorate.rounds.run import RunState
from quorate_operator.json_output import UNPROTECTED, run_json, site_json, study_json
from tests.operator.samples import ATTESTED, FIRST, NOW, a_site, a_study_view, changed


def test_a_site_has_these_keys() -> None:
    site = a_site()
    assert site.member is not None
    assert site_json(site) == {
        "name": "north",
        "state": "online",
        "fingerprint": site.member.fingerprint,
        "certificate_expires_unix_s": NOW + 86_400,
        "invitation_expires_unix_s": None,
        "last_seen_unix_s": NOW - 5,
        "version": "0.1.0",
    }
    invited = a_site(member=None, version="", last_seen_unix_s=0.0, certificate_expires_unix_s=0)
    assert set(site_json(invited)) == set(site_json(site))


def test_a_study_has_these_keys_and_its_warning() -> None:
    view = a_study_view()
    content = study_json(view)
    assert list(content) == [
        *("name", "digest", "published_unix_s", "kind", "protection", "attestation", "training_data", "sites"),
        *("study", "warnings"),
    ]
    assert [(site["name"], site["answer"], site["answered_unix_s"]) for site in content["sites"]] == [
        ("north", "approved", NOW - 60),
        ("south", "none", None),
    ]
    assert content["warnings"] == [UNPROTECTED]
    assert json.loads(json.dumps(content["study"])) == json.loads(view.study.canonical())


def test_a_run_has_these_keys_and_its_warning() -> None:
    paused = changed(results=(FIRST,), state=RunState.PAUSED, reason=QuorumMissingError("1 of 2", action="Wait"))
    content = run_json(paused)
    assert json.loads(json.dumps(content)) == {
        "run": "malignancy-0a1b2c",
        "study": "malignancy",
        "study_digest": bytes(range(32)).hex(),
        "kind": "study",
        "protection": "none",
        "attestation": None,
        "state": "paused",
        "reason": {"code": "quorum_missing", "what": "1 of 2", "expected": "", "got": "", "action": "Wait"},
        "round": 1,
        "rounds": 2,
        "phase": "train",
        "sites": [
            {"site": "north", "state": "working", "code": ""},
            {"site": "south", "state": "working", "code": ""},
        ],
        "results": [
            {
                "round": 1,
                "contributed": ["north"],
                "metrics": {"auc": 0.75, "loss": 0.5, "recall": 0.25},
                "phase_seconds": {"train": 1.0, "evaluate": 0.5},
                "bytes_up": 10,
                "bytes_down": 20,
                "missing": {"south": "site_paused"},
            }
        ],
        "started_unix_s": NOW - 60,
        "changed_unix_s": NOW,
        "model_available": False,
        "warnings": [UNPROTECTED],
    }


def test_a_protected_run_carries_no_warning() -> None:
    assert run_json(changed(protection="secagg"))["warnings"] == []


def test_a_run_tells_what_each_site_thinks_of_the_attested_machine() -> None:
    told = run_json(ATTESTED)["attestation"]
    assert told["kinds"] == ["tdx", "software"]
    assert told["remarks"][0].startswith("SOFTWARE EVIDENCE")
    assert [(one["site"], one["state"], one["code"], one["kind"]) for one in told["sites"]] == [
        ("north", "refused", "attestation_debug", "software"),
        ("south", "trusted", None, "tdx"),
    ]
    assert told["sites"][1]["asked_unix_s"] is None
