from __future__ import annotations

import io
from dataclasses import replace

from rich.console import RenderableType

from quorate.errors import QuorumMissingError
from quorate.process.terminal import Terminal
from quorate.rounds.run import Progress, RunState, SiteProgress
from quorate.study.study import Study
from quorate_operator import tables
from tests.operator.samples import ATTESTED, FIRST, NORTH, NOW, RUNNING, SECOND, a_site, a_study_view, changed


def text_of(content: RenderableType) -> str:
    output = io.StringIO()
    Terminal(file=output, width=200).print(content)
    return output.getvalue()


def test_sites_are_shown_with_expiry_and_last_sight_in_words() -> None:
    invited = a_site("south", state="invited", member=None, certificate_expires_unix_s=0, last_seen_unix_s=0.0)
    text = text_of(tables.sites_table([a_site(), invited], NOW))
    assert "online" in text
    assert "5 seconds ago" in text
    assert "2027-01-16 (in 1 day)" in text
    assert a_site().name in text


def test_what_is_unprotected_shows_a_warning_everywhere() -> None:
    study = a_study_view()
    for content in (
        tables.studies_table([study], NOW),
        tables.study_page(study, NOW),
        tables.runs_table([RUNNING], NOW),
        tables.run_page(RUNNING, NOW),
    ):
        assert "WARNING" in text_of(content)
    for content in (
        tables.runs_table([changed(protection="secagg")], NOW),
        tables.run_page(changed(protection="secagg"), NOW),
    ):
        assert "WARNING" not in text_of(content)


def test_a_study_page_shows_what_sites_are_asked_to_agree_to_and_who_did() -> None:
    view = a_study_view()
    text = text_of(tables.study_page(view, NOW))
    assert view.digest.hex() in text
    assert "Tell [bold]malignant[/bold] from benign" in text
    assert "model = logistic" in text
    assert "3, each with at least 1 of 2 sites within 600 s" in text
    north, south = (line for line in text.splitlines() if line.startswith(("north", "south")))
    assert "approved" in north
    assert "1 minute ago" in north
    assert "none" in south
    assert "real records" in text


def test_a_study_page_shows_on_what_it_trains_and_what_a_made_set_must_be() -> None:
    view = a_study_view()
    changes = {"training_data": "synthetic", "synthetic": {"largest_epsilon": 3.0}}
    synthetic = replace(view, study=Study.model_validate(view.study.model_dump() | changes))
    text = text_of(tables.study_page(synthetic, NOW))
    assert "synthetic records that each site made itself" in text
    assert "none of its own: what was promised when the synthetic records were made" in text
    assert "largest_epsilon = 3" in text


def test_a_run_page_shows_progress_trouble_and_results() -> None:
    view = changed(
        sites=(SiteProgress(NORTH, Progress.REFUSED, "site_paused"),),
        results=(FIRST,),
        round_number=2,
        state=RunState.PAUSED,
        reason=QuorumMissingError("1 of 2 sites", action="Wait"),
    )
    text = text_of(tables.run_page(view, NOW))
    assert "1 of 2 rounds" in text
    assert "1 of 2 sites. Wait." in text
    assert "site_paused" in text
    header, row = (line.split() for line in text.splitlines() if line.startswith(("round  ", "1  ")))
    assert header == ["round", "sites", "loss", "auc", "recall", "seconds", "missing"]
    assert row == ["1", "1", "0.5000", "0.7500", "0.2500", "1.50", "south", "site_paused"]


def test_a_completed_run_shows_all_rounds_done_and_only_the_latest_in_detail() -> None:
    rounds = tables.LATEST_ROUNDS + 5
    view = changed(state=RunState.COMPLETED, rounds=rounds, results=(FIRST, SECOND) * rounds, model_available=True)
    text = text_of(tables.run_page(view, NOW))
    assert f"{rounds} of {rounds} rounds" in text
    assert "quorate model fetch" in text
    assert sum(line.startswith(("1 ", "2 ")) for line in text.splitlines()) == tables.LATEST_ROUNDS


def test_a_round_in_one_line_names_metrics_and_who_is_missing() -> None:
    assert tables.round_line(FIRST, 2) == (
        "round 1 of 2: 1 sites (without south site_paused)  loss 0.5000  auc 0.7500  recall 0.2500  1.50 s"
    )


def test_a_run_page_shows_what_each_site_thinks_of_the_attested_machine() -> None:
    text = text_of(tables.run_page(ATTESTED, NOW))
    assert "an attested machine (tdx, software)" in text
    assert "not against somebody with a probe on the memory bus" in text
    north = next(line for line in text.splitlines() if "attestation_debug" in line)
    assert " ".join(north.split()) == "north refused attestation_debug software 5 seconds ago 4 seconds ago"
    assert "attested" not in text_of(tables.run_page(RUNNING, NOW))


def test_what_software_says_of_itself_is_red() -> None:
    output = io.StringIO()
    Terminal(file=output, width=200, force_terminal=True, color_system="standard").print(tables.run_page(ATTESTED, NOW))
    red = output.getvalue().split("\x1b[1;31m")[1:]
    assert any(part.startswith("software") for part in red)
    assert any(part.startswith("SOFTWARE EVIDENCE") for part in red)


def test_a_study_page_shows_which_machines_and_which_software_may_add() -> None:
    view = a_study_view()
    nitro = {"allow": [{"name": "one", "pcr0": "01" * 48, "pcr1": "02" * 48, "pcr2": "03" * 48, "until": "2027-01-31"}]}
    changes = {
        "protection": {"mode": "secagg", "colluders": 0},
        "rounds": {"count": 3, "quorum": 2},
        "attestation": {"required": True, "policy": {"nitro": nitro}},
    }
    attested = replace(view, study=Study.model_validate(view.study.model_dump() | changes))
    text = text_of(tables.study_page(attested, NOW))
    assert "secagg, stands 0 colluding site(s); added by an attested machine (nitro)" in text
    assert "nitro: one, until 2027-01-31 (UTC)" in text
    assert "producing evidence has not been run on hardware" in text
    assert "SOFTWARE" not in text
