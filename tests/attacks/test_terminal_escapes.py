"""Text that comes from a server, a study, a file or a site steers nobody's terminal, and hides nothing on it."""

# ruff: noqa: N802  # handlers have the names of the proto

from __future__ import annotations

import io
import json
import logging
import random
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from quorate.errors import QuorateError, StudyError
from quorate.identity import Role, SiteName
from quorate.process.printable import hidden_in, printable
from quorate.process.terminal import TRACEBACK, Terminal, say, say_json, unexpected_ends_it
from quorate.rounds.run import Progress, RunState, SiteProgress
from quorate.study.study import Study
from quorate.study.study_file import StudyFile
from quorate.v1 import common_pb2, operator_pb2, operator_pb2_grpc, rounds_pb2
from quorate.wire.refusal import DETAIL_KEY
from quorate_client.site.folder import SiteFolder
from quorate_client.site.logs import configure_logging as configure_site_logging
from quorate_operator import watch
from quorate_operator.cli import main as quorate
from quorate_server.cli import main as quorate_server
from quorate_server.logs import configure_logging as configure_server_logging
from tests.client.command_kit import Run, runner
from tests.client.consortium import Authority, Server, server_credentials
from tests.operator.samples import FIRST, NOW, RUNNING
from tests.server.door import SiteKeys, a_study

OBEYED = {
    "colour": "\x1b[31mred",
    "cursor": "\x1b[2A\x1b[2K\x1b[1Gapproved",
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "link": "\x1b]8;;https://evil.example\x1b\\click",
    "C1": "\x9b31m\x9d52;c;cm0=\x9c",
    "delete": "\x7f\x08\x08\x08",
    "carriage return": "refused\rapproved",
    "form feed": "\f\v",
    "direction": "abc\u202egpj.exe\u2066\u200f",
    "no width": "nor\u200bth\ufeff\u2060",
    "no glyph": "\u3164\u115f\u2800\ufe0f\U000e0101\U000e0041",
    "separators": "one\u2028two\u2029three\x85four",
    "private use": "\ue000",
    "markup": "[link=https://evil.example]click[/link][bold red]x[/] :warning:",
}
INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0" + "".join(
    map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
)


def is_plain(text: str) -> bool:
    """Nothing but line ends of ours and what a person sees. Said here once more, and by other means."""
    return not any(
        unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or sign in INVISIBLE
        for sign in text.replace("\n", "")
    )


def made_up(draw: random.Random, *, surrogates: bool = False) -> str:
    """A text as an attacker chooses it: anything, above all what terminals obey."""
    pieces = [*OBEYED.values(), "\n", "\t", "name", "é", "\u05d0", *(["\ud800", "\udc80"] if surrogates else [])]
    anything = [chr(code) for code in draw.sample(range(0x110000), 6) if not 0xD800 <= code < 0xE000]
    return "".join(draw.choices([*pieces, *anything], k=draw.randint(1, 6)))


def filled(message: Any, text: Callable[[], str]) -> Any:
    """The message with a made-up text in each field that takes one."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            if entry.fields_by_name["value"].message_type is not None:
                filled(value[text()], text)
            else:
                value[text()] = text() if entry.fields_by_name["value"].type == field.TYPE_STRING else 1.5
        elif entry is not None:
            for part in [value.add(), value.add()] if field.is_repeated else [value]:
                filled(part, text)
                part.SetInParent()
        elif field.type == field.TYPE_STRING and field.is_repeated:
            value.extend([text(), text()])
        elif field.type == field.TYPE_STRING:
            setattr(message, field.name, text())
    return message


class HostileServer(operator_pb2_grpc.OperatorServicer):
    """Answers every call with made-up texts wherever one fits, or refuses it with one."""

    def __init__(self) -> None:
        self.draw = random.Random(0)
        self.refuses = False
        self.study = a_study(SiteKeys.make("north"), SiteKeys.make("south"))

    def text(self) -> str:
        return made_up(self.draw)

    def run(self) -> operator_pb2.RunStatus:
        status = filled(operator_pb2.RunStatus(), self.text)
        status.run, status.state = "run-1", "completed"
        status.study_digest = self.study.digest()
        for site, state in zip(status.sites, ("refused", "absent"), strict=True):
            site.state = state
        return status

    def published(self) -> operator_pb2.StudyStatus:
        status = filled(operator_pb2.StudyStatus(), self.text)
        status.canonical, status.digest = self.study.canonical(), self.study.digest()
        status.answers[0].site = "north"
        return status

    def site(self) -> operator_pb2.SiteStatus:
        status = filled(operator_pb2.SiteStatus(), self.text)
        status.ClearField("member")
        return status

    def _or_refused(self, context: Any, answer: Any) -> Any:
        if not self.refuses:
            return answer
        detail = filled(common_pb2.ErrorDetail(), self.text)
        if self.draw.random() < 0.7:
            detail.code = "not_found"
        if self.draw.random() < 0.7:
            context.set_trailing_metadata(((DETAIL_KEY, detail.SerializeToString()),))
        return context.abort(grpc.StatusCode.NOT_FOUND, self.text())

    def InviteSite(self, request: Any, context: Any) -> Any:
        invitation = filled(operator_pb2.Invitation(), self.text)
        return self._or_refused(context, invitation)

    def ListSites(self, request: Any, context: Any) -> Any:
        return self._or_refused(context, operator_pb2.ListSitesReply(sites=[self.site(), self.site()]))

    def RevokeSite(self, request: Any, context: Any) -> Any:
        return self._or_refused(context, self.site())

    def ListStudies(self, request: Any, context: Any) -> Any:
        return self._or_refused(context, operator_pb2.ListStudiesReply(studies=[self.published()]))

    def GetStudy(self, request: Any, context: Any) -> Any:
        return self._or_refused(context, self.published())

    def PlanStudy(self, request: Any, context: Any) -> Any:
        plan = operator_pb2.StudyPlan(study=self.published())
        plan.sites.add(site="north", readiness=common_pb2.Readiness(code="disk_full"))
        return self._or_refused(context, plan)

    def ListRuns(self, request: Any, context: Any) -> Any:
        return self._or_refused(context, operator_pb2.ListRunsReply(runs=[self.run()]))

    def StartRun(self, request: Any, context: Any) -> Any:
        return self._or_refused(context, self.run())

    GetRun = PauseRun = StartRun

    def WatchRun(self, request: Any, context: Any) -> Any:
        yield self._or_refused(context, self.run())

    def GetReport(self, request: Any, context: Any) -> Any:
        yield self._or_refused(context, common_pb2.Frame(index=3))

    FetchModel = GetReport


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    authority, services = Authority(), HostileServer()
    server = grpc.server(ThreadPoolExecutor(2))
    operator_pb2_grpc.add_OperatorServicer_to_server(services, server)
    port = server.add_secure_port("localhost:0", server_credentials(authority))
    server.start()
    folder = tmp_path / "operator"
    folder.mkdir()
    key, certificate = authority.credential(Role.OPERATOR, "olga")
    profile = {"format": "quorate.profile/1", "consortium": authority.consortium, "operator": "olga"}
    (folder / "profile.json").write_text(json.dumps(profile | {"address": f"localhost:{port}"}))
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "operator.pem").write_bytes(certificate)
    (folder / "operator.key").touch(mode=0o600)
    (folder / "operator.key").write_bytes(key)
    monkeypatch.chdir(tmp_path)
    yield services
    server.stop(None).wait()


COMMANDS = [
    "site list", "site revoke north", "site invite north", "study list", "study show hearts", "study plan hearts",
    "run list", "run show run-1", "run pause run-1", "run start hearts", "run watch run-1", "run report run-1",
    "model fetch run-1",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_no_answer_of_a_server_steers_the_operators_terminal(
    command: str, hostile: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(6):
        hostile.draw.seed(f"{command} {seed}")
        hostile.refuses = seed % 3 == 2
        for form in ([], ["--json"]):
            with pytest.raises(SystemExit):
                quorate(["--profile", "operator", *command.split(), *form])
            said = capsys.readouterr()
            assert said.out + said.err
            assert is_plain(said.out + said.err), ascii(said.out + said.err)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_drawn_again_and_again_on_a_terminal_holds_styles_of_ours_only(seed: int) -> None:
    draw = random.Random(seed)
    view = replace(
        RUNNING,
        study=made_up(draw),
        protection=made_up(draw),
        phase=made_up(draw),
        reason=QuorateError(made_up(draw), got=made_up(draw, surrogates=True), action=made_up(draw)),
        sites=(SiteProgress(SiteName(made_up(draw)), Progress.REFUSED, made_up(draw)),),
        results=(replace(FIRST, metrics={made_up(draw): 1.0}, missing={made_up(draw): made_up(draw)}),),
    )
    output = io.StringIO()
    terminal = Terminal(file=output, force_terminal=True, width=100, legacy_windows=False)
    watch.watch_live([view, replace(view, state=RunState.COMPLETED)], terminal, lambda: NOW)
    ours = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[1?A|\x1b\[2K|\r")
    assert is_plain(ours.sub("", output.getvalue())), ascii(output.getvalue())
    colours = set(re.findall(r"\x1b\[([0-9;]*)m", output.getvalue()))
    assert not {code for code in colours if "8" in code.split(";")}, "something is concealed"


def test_a_line_end_in_a_text_begins_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("refused: \nstudy approved\r\nby all\u2028sites")
    assert capsys.readouterr().out.count("\n") == 1


# --- the site's command ---


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: SiteFolder) -> Run:
    return runner(capsys, monkeypatch, folder)


class HostileStudies(Server):
    """Offers studies that no honest server holds."""

    canonical = b""

    def ListStudies(self, request: Any, context: Any) -> Any:
        if self.faults.studies_refused is not None:
            return super().ListStudies(request, context)
        member = common_pb2.Member(name="\x1b[2J\u202enorth", signing_key=bytes(32), sealing_key=bytes(32))
        study = rounds_pb2.SiteStudy(digest=bytes(32), canonical=self.canonical, members=[member])
        return rounds_pb2.SiteStudiesReply(studies=[study])


@pytest.fixture
def services(authority: Authority, tmp_path: Path) -> Server:
    return HostileStudies(authority, tmp_path / "server-spool")


@pytest.mark.parametrize("kind", OBEYED)
def test_no_study_or_refusal_of_a_server_steers_the_administrators_terminal(
    kind: str, run: Run, services: HostileStudies, joined: SiteFolder
) -> None:
    text = OBEYED[kind] + "\ud800"
    content = a_study(SiteKeys.make("north"), SiteKeys.make("south")).model_dump(mode="json")
    for spoilt in (
        content | {"purpose": text},
        content | {text: 1},
        content | {"name": text},
        content | {"task": content["task"] | {"parameters": {text: text}}},
    ):
        services.canonical = json.dumps(spoilt).encode()
        for command in (["studies"], ["show", "hearts"], ["studies", "--json"], ["diff", text[:-1], "x"]):
            result = run(*command)
            assert is_plain(result.out + result.err), ascii(result.out + result.err)
    services.faults.studies_refused = QuorateError(text[:-1], expected=text[:-1], action=text[:-1])
    result = run("show", "hearts")
    assert is_plain(result.out + result.err)


def test_no_name_of_a_file_or_a_column_steers_the_administrators_terminal(
    run: Run, joined: SiteFolder, tmp_path: Path
) -> None:
    name = OBEYED["clipboard"].replace("\x1b", "\x1b[31m") + "[bold]\udc80\n\u202e"
    table = tmp_path / f"{name}.csv"
    table.write_text("age,sick\n" + "1,0\n2,1\n" * 60)
    schema = tmp_path / f"{name}.toml"
    for column in ("age", "a\\u001b[31mge\\u202e"):
        schema.write_text(
            'kind = "table"\nlabel = "sick"\nclasses = ["0", "1"]\n'
            f'[[features]]\nname = "{column}"\ntype = "numeric"\nminimum = 0\nmaximum = 10\n'
        )
        for command in (
            ["data", "add", "visits", table, "--schema", schema],
            ["data", "list"],
            ["data", "show", "visits"],
        ):
            result = run(*command)
            assert is_plain(result.out + result.err), ascii(result.out + result.err)


def test_the_servers_command_shows_a_folder_whose_name_steers_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / (OBEYED["cursor"] + OBEYED["direction"] + "\n[bold]")
    for command in (
        ["doctor", "--state", folder],
        ["run", "--state", folder],
        ["init", folder, "--consortium", "testers", "--address", "localhost:1"],
        ["operator", "list", "--state", folder],
    ):
        with pytest.raises(SystemExit):
            quorate_server([str(each) for each in command])
        said = capsys.readouterr()
        assert is_plain(said.out + said.err), ascii(said.out + said.err)


def test_a_mistake_of_ours_that_quotes_a_peer_steers_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(SystemExit) as ended, unexpected_ends_it():
        raise KeyError(OBEYED["cursor"]) from ValueError(OBEYED["clipboard"] + "\ud800")
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (1, "")
    assert "ValueError" in said.err
    assert is_plain(said.err)


# --- logs ---


@pytest.fixture
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("daemon", ["site", "server"])
@pytest.mark.parametrize("as_json", [False, True])
def test_no_text_in_a_log_steers_the_terminal_that_shows_it(
    daemon: str, as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    if daemon == "site":
        monkeypatch.setattr(sys, "stderr", stream)
        configure_site_logging("info", as_json=as_json, folder=tmp_path)
    else:
        configure_server_logging("json" if as_json else "text", "info", stream)
    for text in OBEYED.values():
        structlog.get_logger().warning(text, reason=text + "\ud800", run=text.replace("\x85", ""))
        logging.getLogger("a.library").warning("%s", text)
        try:
            raise ValueError(text)
        except ValueError:
            structlog.get_logger().exception("call failed")
    lines = stream.getvalue().split("\n")
    assert len(lines) == 3 * len(OBEYED) + 1
    assert all(map(is_plain, lines))
    if daemon == "site":
        assert is_plain((tmp_path / "quorate-client.log").read_text())


# --- studies ---


def spoilt_studies(text: str) -> Iterator[dict[str, Any]]:
    """A study with the text in each place that takes one."""
    study = a_study(SiteKeys.make("north"), SiteKeys.make("south")).model_dump(mode="json")
    yield study | {"purpose": f"To help {text}"}
    for parameters in (
        {"standardise": text},
        {text: 1},
        {"schema": {"features": [{"name": text}], "classes": ["benign", text]}},
        {"schema": {"features": [{text: ["a"]}]}},
    ):
        yield study | {"task": study["task"] | {"parameters": parameters}}
    yield study | {"task": study["task"] | {"name": text}}


@pytest.mark.parametrize("kind", [kind for kind in OBEYED if kind != "markup"])
def test_a_study_that_hides_or_turns_round_text_is_no_study(kind: str) -> None:
    for spoilt in spoilt_studies(OBEYED[kind]):
        with pytest.raises(StudyError, match=r"U\+[0-9A-F]{4,6}, which does not show") as caught:
            Study.from_canonical(json.dumps(spoilt, ensure_ascii=False).encode())
        assert caught.value.code == "bad_study"


def test_a_study_file_that_hides_text_is_refused_before_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    text = """
        name = "hearts"
        purpose = "Tell sick from well\\u202E"
        sites = ["north"]
        [task]
        name = "tabular-classifier"
        [rounds]
        count = 1
        quorum = 1
        [protection]
        mode = "none"
    """
    path.write_text(text)
    with pytest.raises(StudyError, match=r"purpose has the character U\+202E"):
        StudyFile.read(path)
    path.write_text(text.replace("\\u202E", " in Zürich,\\nתל אביב and 東京 \\u00a0: café"))
    assert StudyFile.read(path).purpose.endswith("café")


# --- the rule ---


def test_everything_that_is_not_seen_is_replaced_and_all_else_is_kept() -> None:
    for code in range(0x110000):
        sign = chr(code)
        shown = printable(sign)
        assert is_plain(shown), f"U+{code:04X}"
        if shown != sign:
            assert bool(hidden_in(sign)) == (shown != " "), f"U+{code:04X}"
            assert not is_plain(sign) or sign == "\n" or unicodedata.category(sign) == "Zs", f"U+{code:04X}"


def test_json_for_programs_says_the_same_in_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    value = {text: [text + "\ud800"] for text in OBEYED.values()}
    say_json(value)
    said = capsys.readouterr().out
    assert is_plain(said)
    assert json.loads(said) == value
