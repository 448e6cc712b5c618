"""The documents keep their word: commands run, links lead somewhere, codes exist."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

import pytest

from quorate.errors import error_classes
from tests.docs.commands import Block, CommandError, Terminal, blocks, fits, run_document
from tests.leftovers import running_in

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
WRITTEN = [path for path in DOCUMENTS if path.parent.name != "reference"]
WITH_COMMANDS = [path for path in DOCUMENTS if blocks(path.read_text(encoding="utf-8"))]
IN_THE_CHECKOUT = ("demo", "examples")

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE_WORD = re.compile(r"`([a-z]+(?:_[a-z]+)+)`")
# Words of this form in the documents that are no error codes: keys of files, columns of a report, Python names.
_NOT_CODES = re.compile(
    r"absent_grace_s|asked_at|checkpoint_every|clipped_coordinates|deadline_s|guest_apps|(address|metrics)_listen|minimum_sites|"
    r"require_isolation|task_memory_mb|task_digest|proximal_mu|learning_rate|value_bound|error_classes|schema_file|"
    r"certificate_days|invitation_days|silent_after_s|heartbeat_s|upload_slots|database_url(_file)?|(https?|no)_proxy|metrics_listen|log_format|"
    r"log_level|log_json|keep_days|run_config|node_config|test_fraction|batch_size|hidden|server_app|"
    r"hospital_ids|train_loss|noise_multiplier|spare_rounds|epsilon_(per_run|per_year|ever)|"
    r"least_(records|noise)|largest_(clip|delta|epsilon|risk|utility_loss)|dataset_names_in_metrics|runbook_url|"
    r"host_data|tdx_guest|tcb_info|qe_identity|pck_crl_issuer_chain|least_(tcb|evaluation_data_number)|"
    r"quorate_(server|client|operator)|(quorate_(server|client)|process)_[a-z_]+"
)


def _prose(path: Path) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _prose(path), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_of_a_document_leads_to_a_file_and_a_heading(path: Path) -> None:
    broken = []
    for link in _LINK.findall(_prose(path)):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_error_code_that_a_document_names_exists(path: Path) -> None:
    words = {word for word in _CODE_WORD.findall(_prose(path)) if not _NOT_CODES.fullmatch(word)}
    assert words - set(error_classes()) == set()


def test_a_marker_says_where_a_block_runs_and_when_the_next_may_follow() -> None:
    (block,) = blocks("<!-- run: one after Ctrl-C until it is ready -->\n```bash\nstay\n```\n")
    assert (block.terminal, block.interrupts, block.until) == ("one", True, "it is ready")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_document_works_as_shown(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "try"
    folder.mkdir()
    for name in IN_THE_CHECKOUT:
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    server, metrics = f"127.0.0.1:{_free_port()}", f"127.0.0.1:{_free_port()}"
    # The ports that documents show may be taken on the machine that runs this.
    other_metrics = f"\necho 'metrics_listen = \"{metrics}\"' >> server/server.toml"
    replaced = {"--listen 127.0.0.1:8443": f"--listen {server}{other_metrics}", "127.0.0.1:8443": server}
    assert run_document(path, folder, environment, replaced) > 0
    assert running_in(tmp_path) == []


def test_a_console_block_is_read_as_commands_and_what_they_print() -> None:
    text = "Text.\n\n<!-- run: one -->\n```console\n$ echo a \\\n> b\na b\n$ true\n```\n\n```bash\nnever\n```\n"
    (block,) = blocks(text)
    assert block == Block(4, "one", False, None, "console", "$ echo a \\\n> b\na b\n$ true\n")
    assert list(block.steps()) == [("echo a \\\nb", ["a b"]), ("true", [])]


@pytest.mark.parametrize(
    ("shown", "printed", "fit"),
    [
        (["a  b"], "a b\n", True),
        (["took … s"], "took three s\n", True),
        (["run cells-0a1b2c 12:00:00 0.5 1 second ago"], "run cells-ffffff 13:59:01 12.25 20 seconds ago\n", True),
        (["121 records"], "122 records\n", False),
        (["first", "…", "last"], "first\n1\n2\nlast\n", True),
        (["first", "last"], "first\n1\nlast\n", False),
        (["a"], "a\nb\n", False),
        ([], "unexpected\n", False),
    ],
)
def test_shown_output_fits_what_was_printed_apart_from_what_is_left_open(
    shown: list[str], printed: str, fit: bool
) -> None:
    assert fits(shown, printed) is fit


@pytest.mark.parametrize(
    ("block", "message"),
    [("$ false", "failed"), ("$ echo other\nsame", "something else than shown"), ("$ nosuchcommand", "not found")],
)
def test_a_command_that_fails_or_prints_something_else_fails_its_document(
    block: str, message: str, tmp_path: Path
) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"<!-- run: one -->\n```console\n{block}\n```\n", encoding="utf-8")
    with pytest.raises(CommandError, match=message):
        run_document(document, tmp_path, dict(os.environ), {})


def test_closing_a_terminal_ends_what_was_left_running_in_it(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, dict(os.environ))
    terminal.run("sleep 600 & sleep 601 &", 1)
    assert len(running_in(tmp_path)) == 3
    terminal.close()
    assert running_in(tmp_path) == []
