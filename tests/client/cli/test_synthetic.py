"""The commands about synthetic data sets, with the generator and the report that are shipped."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from quorate_client.cli import main
from quorate_client.site.folder import SiteFolder
from quorate_client.synthetic.kept import alone
from quorate_client.tasks.data.table import read_table

from ..command_kit import Run, runner
from ..conftest import enrol
from ..consortium import Authority, Server
from ..synthetic.records import SCHEMA_TOML, a_table, parsed, write_table

RECORDS, ROWS = 300, 1700
GENEROUS = "[synthetic]\nwithout_privacy = true\nlargest_risk = 1.0\nlargest_utility_loss = 1.0\n"


@dataclass(frozen=True)
class Template:
    """A site with a registered table and what was made of it, which each test gets as it was."""

    root: Path
    made: Any
    without: Any

    @property
    def site(self) -> SiteFolder:
        return SiteFolder(self.root / "site")


def call(site: SiteFolder, *arguments: object) -> Any:
    """What a command prints as JSON."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--state", str(site.root), "--json"])
    assert not ended.value.code, err.getvalue()
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Template:
    root = tmp_path_factory.mktemp("made")
    site = SiteFolder(root / "site")
    enrol(site, Server(authority, root / "spool"), "127.0.0.1:1")
    site.policy.write_text(GENEROUS)
    (root / "schema.toml").write_text(SCHEMA_TOML)
    write_table(root / "visits.csv", a_table(RECORDS))
    call(site, "data", "add", "visits", root / "visits.csv", "--schema", root / "schema.toml")
    make = ("synthetic", "make", "visits", "--rows")
    made = call(site, *make, ROWS, "--name", "made", "--epsilon", 3, "--keep", "age")
    without = call(site, *make, 40, "--name", "open", "--no-privacy", "--drop", "region", "--generalise", "pressure=5")
    return Template(root, made, without)


@pytest.fixture
def site(template: Template) -> Any:
    """Afterwards it is as it was: where its files are is in its database."""
    site = template.site
    before = template.root / "before"
    shutil.copytree(site.root, before)
    yield site
    shutil.rmtree(site.root)
    before.rename(site.root)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, site: SiteFolder) -> Run:
    return runner(capsys, monkeypatch, site)


def everything(site: SiteFolder) -> dict[str, bytes]:
    files = (path for path in site.root.rglob("*") if path.is_file() and ".sqlite" not in path.name)
    return {str(path.relative_to(site.root)): path.read_bytes() for path in files}


# --- make ---


def test_an_interrupted_make_says_that_it_can_be_repeated(run: Run) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, 0.3)  # of this process's own work, so that a busy machine changes nothing
    try:
        stopped = run("synthetic", "make", "visits", "--name", "next", "--rows", ROWS, "--epsilon", "3")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert (stopped.code, "The same command again finishes it" in stopped.err) == (130, True)
    assert [each["name"] for each in run("synthetic", "list", "--json").json()] == ["made", "open"]


def test_a_made_set_says_what_it_cost_what_it_discloses_and_whether_it_may_be_used(template: Template) -> None:
    made = template.made
    assert (made["name"], made["source"], made["records"], made["epsilon"]) == ("made", "visits", ROWS, 3.0)
    assert set(made["risks"]) == {"membership", "attribute", "singling_out", "linkability"}
    assert (made["is_usable"], made["refused"]) == (True, [])
    assert made["lineage"]["is_watermarked"]
    assert made["lineage"]["transformations"] == ["kept age, declared not identifying"]
    assert template.without["privacy"] == "made WITHOUT privacy"
    assert template.without["lineage"]["transformations"] == ["dropped region", "rounded pressure to multiples of 5"]


def test_what_was_made_is_on_the_ledger(run: Run) -> None:
    (statement,) = run("ledger", "show", "visits", "--json").json()["accounts"]
    assert [each["study"] for each in statement["runs"]] == ["synthetic:made"]
    assert [each["study"] for each in statement["unbounded"]] == ["synthetic:open"]
    assert statement["runs"][0]["epsilon"] > 2.5
    assert run("ledger", "verify").code == 0


def test_a_made_table_fits_the_schema_and_says_what_it_is_in_each_row(template: Template) -> None:
    path = template.site.synthetic / "made" / "records.csv"
    lines = path.read_text().splitlines()
    assert lines[0].startswith('"synthetic"')
    assert all(line.startswith('"quorate-synthetic-') for line in lines[1:])
    schema = parsed()
    schema = schema.model_copy(update={"file": schema.file.model_copy(update={"ignore": ("synthetic",)})})
    assert read_table(path, schema).records == ROWS


MAKE = ("synthetic", "make", "visits", "--rows", "40", "--name", "next")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((*MAKE,), 2, "either --epsilon E or --no-privacy"),
        ((*MAKE, "--epsilon", "1", "--no-privacy"), 2, "either --epsilon E or --no-privacy"),
        ((*MAKE, "--epsilon", "0"), 2, "a number above 0"),
        ((*MAKE, "--epsilon", "1e-9", "--delta", "1e-9"), 3, "privacy_refused"),
        ((*MAKE, "--epsilon", "3", "--delta", "0.5"), 3, "at most 0.00"),
        ((*MAKE, "--epsilon", "3", "--generalise", "age"), 2, "COLUMN=STEP"),
        ((*MAKE, "--epsilon", "3", "--generalise", "age=-2"), 2, "COLUMN=STEP"),
        ((*MAKE, "--epsilon", "3", "--drop", "weight"), 2, "no column weight"),
        (("synthetic", "make", "none", *MAKE[3:], "--epsilon", "3"), 2, "no data set none"),
        (("synthetic", "make", "made", *MAKE[3:], "--epsilon", "3"), 2, "synthetic itself"),
        ((*MAKE[:-1], "made", "--epsilon", "3"), 2, "There is a data set made already"),
        ((*MAKE[:4], "1", *MAKE[5:], "--epsilon", "3"), 2, "from 20"),
        (("synthetic", "report", "visits"), 2, "it holds real records"),
        (("synthetic", "export", "none", "-o", "x.csv"), 2, "no synthetic data set none"),
    ],
)
def test_a_command_that_cannot_be_done_says_why_and_changes_nothing(
    run: Run, site: SiteFolder, arguments: tuple[str, ...], code: int, said: str
) -> None:
    before, entries = everything(site), run("ledger", "verify", "--json").json()
    refused = run(*arguments)
    assert (refused.code, said in refused.err) == (code, True), refused.err
    assert everything(site) == before | {
        name: content for name, content in everything(site).items() if name == "synthetic.lock"
    }
    assert run("ledger", "verify", "--json").json() == entries


def test_images_are_not_made(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "scans.npz", images=np.zeros((40, 2, 2), dtype=np.uint8), labels=np.arange(40) % 2)
    (tmp_path / "scans.toml").write_text('kind = "images"\nheight = 2\nwidth = 2\nchannels = 1\nclasses = ["a", "b"]\n')
    assert run("data", "add", "scans", tmp_path / "scans.npz", "--schema", tmp_path / "scans.toml").code == 0
    refused = run("synthetic", "make", "scans", "--name", "x", "--rows", 40, "--epsilon", 1)
    assert (refused.code, "holds images" in refused.err) == (2, True)


def test_what_the_policy_forbids_is_refused(run: Run, site: SiteFolder) -> None:
    site.policy.write_text("[synthetic]\nlargest_epsilon = 1.0\n")
    assert run(*MAKE, "--epsilon", 3).code == 3
    refused = run(*MAKE, "--no-privacy")
    assert (refused.code, "without_privacy = true" in refused.err) == (3, True)


def test_a_budget_that_does_not_suffice_says_what_is_left(run: Run, site: SiteFolder, tmp_path: Path) -> None:
    """Of records that were never released without a bound."""
    write_table(tmp_path / "others.csv", a_table(RECORDS, seed=7))
    (tmp_path / "schema.toml").write_text(SCHEMA_TOML)
    assert run("data", "add", "others", tmp_path / "others.csv", "--schema", tmp_path / "schema.toml").code == 0
    site.policy.write_text("[privacy]\nepsilon_ever = 2.0\ndelta = 0.001\n")
    refused = run("synthetic", "make", "others", *MAKE[3:], "--epsilon", 5)
    assert (refused.code, "budget_exhausted" in refused.err, "left for ever: 2" in refused.err) == (3, True, True)
    assert run("data", "show", "next").code == 2


# --- list, report ---


def test_sets_are_listed_with_what_protects_their_source_and_whether_they_may_be_used(
    run: Run, site: SiteFolder
) -> None:
    shown = run("synthetic", "list").out
    assert "epsilon 3, delta 0.001 per record" in shown
    assert "made WITHOUT privacy" in shown
    listed = run("synthetic", "list", "--json").json()
    assert [(each["name"], each["is_usable"]) for each in listed] == [("made", True), ("open", True)]
    site.policy.write_text("[synthetic]\nlargest_utility_loss = 0.0\nlargest_risk = 0.0\n")
    usable = {each["name"]: each["is_usable"] for each in run("synthetic", "list", "--json").json()}
    assert usable["open"] is False
    assert "REFUSED" in run("synthetic", "list").out
    (site.synthetic / "half").mkdir()
    assert "half is no data set" in run("synthetic", "list").err.replace("\n", " ")


def test_a_report_is_shown_as_figures_as_a_page_and_as_json(run: Run, tmp_path: Path) -> None:
    shown = run("synthetic", "report", "open").out + run("synthetic", "report", "open").err
    assert "linkability" in shown
    assert "WITHOUT privacy" in shown
    report = run("synthetic", "report", "made", "--format", "json").json()
    assert report["synthetic"] == ROWS
    assert "salt" not in report
    assert run("synthetic", "report", "made", "-o", tmp_path / "made.json").code == 0
    assert json.loads((tmp_path / "made.json").read_text()) == report
    assert run("synthetic", "report", "open", "--format", "html", "-o", tmp_path / "open.html").code == 0
    assert "WITHOUT privacy" in (tmp_path / "open.html").read_text()
    again = run("synthetic", "report", "open", "--format", "html", "-o", tmp_path / "open.html")
    assert (again.code, "exists already" in again.err) == (2, True)


def test_a_report_that_was_exchanged_is_not_shown(run: Run, site: SiteFolder) -> None:
    path = site.synthetic / "made" / "report.json"
    path.write_text(path.read_text().replace('"epsilon": 3.0', '"epsilon": 1.0'))
    for command in (("report", "made"), ("report", "made", "--format", "html", "-o", site.root / "x.html")):
        refused = run("synthetic", *command)
        assert (refused.code, "is not what was made" in refused.err) == (1, True)
    assert run("synthetic", "export", "made", "-o", site.root / "x.csv").code == 1


def test_a_set_whose_records_are_gone_or_changed_is_not_said_to_be_usable(run: Run, site: SiteFolder) -> None:
    assert run("synthetic", "list").out.count("usable") == 2
    with (site.synthetic / "made" / "records.csv").open("a") as records:
        records.write("x")
    shutil.rmtree(site.synthetic / "open")
    listed = run("synthetic", "list")
    assert (listed.code, listed.out.count("DAMAGED"), "usable" in listed.out) == (0, 2, False)
    assert [each["is_usable"] for each in run("synthetic", "list", "--json").json()] == [False, False]
    for name in ("made", "open"):
        refused = run("synthetic", "report", name)
        assert (refused.code, "remove the data set and make it again" in refused.err) == (1, True)


def test_a_report_in_a_form_that_nobody_named_is_not_guessed(run: Run, tmp_path: Path) -> None:
    assert "In which form? Expected --format" in run("synthetic", "report", "made", "-o", tmp_path / "made.txt").err
    assert list(tmp_path.iterdir()) == []


# --- export ---


def test_a_set_is_exported_with_its_mark_and_its_lineage(run: Run, tmp_path: Path) -> None:
    assert run("synthetic", "export", "made", "-o", tmp_path / "made.parquet").code == 0
    metadata = pq.read_schema(tmp_path / "made.parquet").metadata
    lineage = json.loads(metadata[b"quorate.lineage"])
    assert (lineage["name"], lineage["parameters"]["epsilon"]) == ("made", 3.0)
    assert run("synthetic", "export", "open", "-o", tmp_path / "open.csv", "--json").json()["privacy"] == (
        "made WITHOUT privacy"
    )
    assert "quorate-synthetic-" in (tmp_path / "open.csv").read_text()
    assert run("synthetic", "export", "made", "-o", tmp_path / "open.csv").code == 2
    assert run("synthetic", "export", "made", "-o", tmp_path / "made.xlsx").code == 2
    refused = run("synthetic", "export", "made", "-o", tmp_path / "none" / "made.csv")
    assert (refused.code, f"no folder {tmp_path / 'none'}" in refused.err) == (2, True)


def test_a_set_that_passes_a_limit_is_kept_with_its_report_and_not_exported(
    run: Run, site: SiteFolder, tmp_path: Path
) -> None:
    site.policy.write_text("[synthetic]\nlargest_epsilon = 2.0\n")
    refused = run("synthetic", "export", "made", "-o", tmp_path / "made.csv")
    assert (refused.code, "largest_epsilon = 2" in refused.err, "epsilon 3" in refused.err) == (3, True, True)
    assert list(tmp_path.iterdir()) == []
    shown = run("synthetic", "report", "made")
    assert (shown.code, "REFUSED: epsilon 3" in shown.out) == (0, True)
    assert run("synthetic", "report", "made", "-o", tmp_path / "made.html").code == 0
    page = (tmp_path / "made.html").read_text()
    assert "must not be used as it is: epsilon 3, where synthetic.largest_epsilon = 2" in page, "as the commands say"
    assert run("synthetic", "export", "open", "-o", tmp_path / "open.csv").code == 3


# --- what was made is known again ---


def test_a_made_file_is_neither_registered_as_real_nor_made_from(
    run: Run, site: SiteFolder, template: Template, tmp_path: Path
) -> None:
    run("synthetic", "export", "made", "-o", tmp_path / "made.csv")
    schema = tmp_path / "schema.toml"
    schema.write_text(SCHEMA_TOML + '\n[file]\nignore = ["synthetic"]\n')
    before = run("ledger", "verify", "--json").json()
    refused = run("data", "add", "real", tmp_path / "made.csv", "--schema", schema)
    assert (refused.code, "synthetic records" in refused.err) == (2, True)
    lines = (tmp_path / "made.csv").read_text().splitlines()
    (tmp_path / "bare.csv").write_text("".join(line.split(",", 1)[1] + "\n" for line in lines))
    refused = run("data", "add", "real", tmp_path / "bare.csv", "--schema", template.root / "schema.toml")
    assert (refused.code, "watermark of this site" in refused.err) == (2, True)
    assert run("ledger", "verify", "--json").json() == before
    assert run("data", "show", "real").code == 2


def test_a_file_is_checked_for_where_it_comes_from(run: Run, template: Template, tmp_path: Path) -> None:
    run("synthetic", "export", "made", "-o", tmp_path / "made.csv")
    found = run("synthetic", "check", tmp_path / "made.csv", "--json").json()
    assert (found["name"], found["is_ours"], found["watermark"]["z"] > 5) == ("made", True, True)
    assert "which is made of this site" in run("synthetic", "check", tmp_path / "made.csv").out
    real = run("synthetic", "check", template.root / "visits.csv", "--schema", template.root / "schema.toml", "--json")
    assert real.json()["is_ours"] is False


def test_a_removed_set_is_gone_with_its_files(run: Run, site: SiteFolder) -> None:
    path = site.synthetic / "open"
    removed = run("data", "remove", "open")
    assert (removed.code, "were deleted" in removed.out) == (0, True)
    assert not path.exists()
    assert run("synthetic", "report", "open").code == 2


@pytest.mark.parametrize("name", ["visits", "open"])
def test_nothing_is_removed_while_a_set_is_being_made(run: Run, site: SiteFolder, name: str) -> None:
    """Its source would be gone when it is finished, or its files be those that are taken away."""
    before = everything(site)
    with alone(site):
        refused = run("data", "remove", name)
    assert (refused.code, "being made" in refused.err) == (2, True)
    assert everything(site) == before | {"synthetic.lock": b""}
    assert run("data", "show", name).code == 0


def test_the_doctor_looks_at_the_synthetic_data_sets(run: Run, site: SiteFolder) -> None:
    def finding() -> tuple[str, str]:
        findings = run("doctor", "--json").json()
        (found,) = (each for each in findings if each["step"] == "synthetic data sets")
        return found["verdict"], found["text"]

    assert finding() == ("ok", "2, with the records and reports that were made")
    (site.synthetic / "half").mkdir()
    assert finding()[0] == "warning"
    (site.synthetic / "made" / "records.csv").write_text("gone")
    assert finding()[0] == "failed"


def test_a_backup_holds_what_was_made(run: Run, site: SiteFolder, tmp_path: Path) -> None:
    assert run("backup", tmp_path / "site.backup").code == 0
    target = tmp_path / "again"
    assert run("restore", tmp_path / "site.backup", "--state", target).code == 0
    for name in ("records.csv", "report.json", "report.html", "lineage.json"):
        assert (target / "synthetic/made" / name).read_bytes() == (site.synthetic / "made" / name).read_bytes()
    assert (target / "keys/synthetic.key").read_bytes() == (site.keys / "synthetic.key").read_bytes()
