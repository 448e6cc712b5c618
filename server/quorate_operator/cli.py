"""The command ``quorate``, for the operator of a consortium."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from quorate import __version__
from quorate.errors import EXIT_REFUSED, EXIT_RUN_NOT_COMPLETED, QuorateError, StudyError
from quorate.identity import SiteName, parse_name
from quorate.process.storage_errors import storage_errors
from quorate.process.terminal import Terminal, say, say_json, unexpected_ends_it
from quorate.rounds.run import RunState, RunView
from quorate_operator import json_output, tables, watch
from quorate_operator.files import invitation_text, private_file, write_download
from quorate_operator.times import until

if TYPE_CHECKING:
    from quorate.secagg.release import ReleaseKey
    from quorate_operator.client import OperatorClient
    from quorate_operator.profile import Profile

# Modules that bring the transport or pydantic are imported where they are used: a shell that completes a word, and
# `--help`, wait for neither.

DAY_S = 86_400
# Output that no terminal limits: wide enough that no cell of a table is folded.
_FILE_WIDTH = 240

app = typer.Typer(help="Operate a Quorate consortium.", no_args_is_help=True, pretty_exceptions_enable=False)
site_app = typer.Typer(help="Sites: who belongs to the consortium.", no_args_is_help=True)
study_app = typer.Typer(help="Studies: what the sites are asked to agree to.", no_args_is_help=True)
run_app = typer.Typer(help="Runs of studies.", no_args_is_help=True)
model_app = typer.Typer(help="Models that a study releases to the operator.", no_args_is_help=True)
for name, part in (("site", site_app), ("study", study_app), ("run", run_app), ("model", model_app)):
    app.add_typer(part, name=name)

Context = typer.Context
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="The file to write.", show_default=False)]
Days = Annotated[int, typer.Option(min=0, max=90, help="Days until it expires; 0: the server's default.")]
SiteArgument = Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")]
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="Its name, or the beginning of its digest.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Its id, or enough of the beginning.")]


def _show_version(asked: bool) -> None:
    if asked:
        say(f"quorate {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: Context,
    profile: Annotated[
        Path | None,
        typer.Option(envvar="QUORATE_PROFILE", help="The credential's folder.", show_default="./operator"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = profile


# --- sites ---


@site_app.command("invite")
def site_invite(
    context: Context, site: SiteArgument, output: Output = None, days: Days = 0, as_json: AsJson = False
) -> None:
    """Invite a site: writes the file with which it joins, once."""
    _invite(context, parse_name(site), output, days, as_json, keep_keys=False)


@site_app.command("reinvite")
def site_reinvite(
    context: Context, site: SiteArgument, output: Output = None, days: Days = 0, as_json: AsJson = False
) -> None:
    """Give a site that lost its certificate a new one, for the signing key that it still holds."""
    _invite(context, parse_name(site), output, days, as_json, keep_keys=True)


def _invite(
    context: Context, site: SiteName, output: Path | None, days: int, as_json: bool, *, keep_keys: bool
) -> None:
    path = output or Path(f"{site}.invitation.json")
    with _client(context) as client, private_file(path) as file:
        invitation = client.invite(site, valid_s=days * DAY_S, keep_keys=keep_keys)
        file.write(invitation_text(invitation))
    if as_json:
        say_json(
            {
                "site": site,
                "path": str(path),
                "address": invitation.address,
                "expires_unix_s": invitation.expires_unix_s,
            }
        )
        return
    expiry = until(invitation.expires_unix_s, time.time())
    say(f"Wrote {path}. It lets its bearer join as {site}, once, until {expiry}.")
    join = f"quorate-client join {'--keep-keys ' if keep_keys else ''}{path.name}"
    say(f"Hand it to the site's administrator over a safe channel, who runs: {join}")


@site_app.command("list")
def site_list(context: Context, as_json: AsJson = False) -> None:
    """Show all sites."""
    with _client(context) as client:
        sites = client.sites()
    _show(as_json, [json_output.site_json(site) for site in sites], lambda: tables.sites_table(sites, time.time()))


@site_app.command("revoke")
def site_revoke(context: Context, site: SiteArgument, as_json: AsJson = False) -> None:
    """Shut a site out, at once and for good; an invitation afterwards makes a new identity."""
    with _client(context) as client:
        view = client.revoke(parse_name(site))
    _show(as_json, json_output.site_json(view), lambda: tables.sites_table([view], time.time()))


# --- studies ---


@study_app.command("publish")
def study_publish(
    context: Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The study file.")],
    as_json: AsJson = False,
) -> None:
    """Publish a study, for the sites to read and answer."""
    from quorate.study.study_file import StudyFile
    from quorate.study.task_digest import task_digest

    wanted = StudyFile.read(file)
    profile = _profile(context)
    release_key = _release_key(context) if wanted.is_release_sealed else None
    with _connect(profile) as client:
        keys = {site.name: site.member.signing_key for site in client.sites() if site.member and site.can_take_part}
        view = client.publish(wanted.resolve(profile.consortium, keys, task_digest, release_key))
    _show(as_json, json_output.study_json(view), lambda: tables.study_page(view, time.time()))
    if not as_json:
        study = view.study.name
        say(f"Now each site's administrator reads and answers it: quorate-client show {study}")
        say(f"Then start it: quorate run start {study}")


@study_app.command("digest")
def study_digest(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Its entry point, or flower:MODULE:ATTRIBUTE.")],
    as_json: AsJson = False,
) -> None:
    """Print the digest of a task as it is installed on this machine: what a study names, or its task.also.

    Needs no credential. With --json each file that counts too, to find where two machines differ.
    """
    from quorate.study.task_digest import installed_task

    found = installed_task(task)
    if as_json:
        files = {path: content.hex() for path, content in sorted(found.files.items())}
        say_json({"task": task, "reference": found.reference, "digest": found.digest, "files": files})
        return
    say(found.digest)


@study_app.command("mock")
def study_mock(
    context: Context,
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A study file (.toml), or a published study's name.")],
    rows: Annotated[int, typer.Option(help="How many records.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same records.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The new file; its name says mock.", show_default="STUDY.mock.csv or STUDY.mock.npz"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make up records that fit a study's schema, to write and try its task with. They come from no record of anybody.

    Needs no credential for a study file.
    """
    from quorate.study.mock_file import mock_name, write_mock

    stem, schema = _study_schema(context, study)
    path = output or Path(mock_name(stem, schema))
    write_mock(path, schema, rows, seed)
    if as_json:
        say_json({"path": str(path), "rows": rows, "seed": seed})
        return
    say(f"Wrote {path}: {rows} records that are made up, of nobody.")


@study_app.command("list")
def study_list(context: Context, as_json: AsJson = False) -> None:
    """Show all studies."""
    with _client(context) as client:
        studies = client.studies()
    _show(
        as_json, [json_output.study_json(view) for view in studies], lambda: tables.studies_table(studies, time.time())
    )


@study_app.command("show")
def study_show(context: Context, study: StudyArgument, as_json: AsJson = False) -> None:
    """Show one study and what the sites answered."""
    with _client(context) as client:
        view = client.study(study)
    _show(as_json, json_output.study_json(view), lambda: tables.study_page(view, time.time()))


@study_app.command("plan")
def study_plan(context: Context, study: StudyArgument, as_json: AsJson = False) -> None:
    """Show which sites would take part in a run, and what blocks the others. Starts nothing.

    Exit code 0 if a run could start: enough approvals, and a quorum that is not known to be blocked. 3 otherwise.
    """
    with _client(context) as client:
        view = client.plan(study)
    _show(as_json, json_output.plan_json(view), lambda: tables.plan_page(view, time.time()))
    if not view.can_start:
        raise typer.Exit(EXIT_REFUSED)


# --- runs ---


@run_app.command("start")
def run_start(context: Context, study: StudyArgument, as_json: AsJson = False) -> None:
    """Start a run of a study."""
    with _client(context) as client:
        published = client.study(study)
        view = client.start(study)
    waiting = [site.name for site, answer in published.roster() if answer.answer != "approved"]
    if waiting:
        say(f"These sites refuse until they approve the study: {', '.join(waiting)}", to_stderr=True)
    _show(as_json, json_output.run_json(view), lambda: tables.run_page(view, time.time()))


@run_app.command("list")
def run_list(context: Context, as_json: AsJson = False) -> None:
    """Show all runs."""
    with _client(context) as client:
        runs = client.runs()
    _show(as_json, [json_output.run_json(view) for view in runs], lambda: tables.runs_table(runs, time.time()))


@run_app.command("show")
def run_show(context: Context, run: RunArgument, as_json: AsJson = False) -> None:
    """Show one run."""
    _act(context, as_json, lambda client: client.run(run))


@run_app.command("pause")
def run_pause(context: Context, run: RunArgument, as_json: AsJson = False) -> None:
    """Pause a run; what was done is kept."""
    _act(context, as_json, lambda client: client.pause(run))


@run_app.command("resume")
def run_resume(context: Context, run: RunArgument, as_json: AsJson = False) -> None:
    """Let a paused run go on."""
    _act(context, as_json, lambda client: client.resume(run))


@run_app.command("stop")
def run_stop(context: Context, run: RunArgument, as_json: AsJson = False) -> None:
    """End a run for good."""
    _act(context, as_json, lambda client: client.stop(run))


@run_app.command("watch")
def run_watch(context: Context, run: RunArgument, as_json: AsJson = False) -> None:
    """Follow a run until it is over. Exit code 0 when it completed, 5 otherwise."""
    console = _console()
    with _client(context) as client:
        views = watch.until_rest(client.watch(run))
        if as_json:
            state = watch.watch_json(views, partial(say_json, indent=None))
        elif console.is_terminal:
            state = watch.watch_live(views, console, time.time)
        else:
            state = watch.watch_lines(views, say)
    if state is not RunState.COMPLETED:
        raise typer.Exit(EXIT_RUN_NOT_COMPLETED)


@run_app.command("report")
def run_report(
    context: Context,
    run: RunArgument,
    output: Output = None,
    report_format: Annotated[str, typer.Option("--format", help="html or json.")] = "html",
    as_json: AsJson = False,
) -> None:
    """Fetch the report of a run."""
    with _client(context) as client:
        path = output or Path(f"{client.run(run).run}.{report_format}")
        size = write_download(path, client.report(run, report_format))
    _tell_download(path, size, as_json)


@model_app.command("fetch")
def model_fetch(context: Context, run: RunArgument, output: Output = None, as_json: AsJson = False) -> None:
    """Fetch the model that a completed run released, and open it if the sites sealed it."""
    path = output or Path("model.npz")
    signers: tuple[SiteName, ...] = ()
    with _client(context) as client, _busy(f"Fetching the model of {run}"):
        view = client.run(run)
        study = client.study(view.study_digest.hex()).study
        if study.is_release_sealed:
            from quorate_operator.release import load_key, opened

            model = opened(client.model(view.run), study, view.run, load_key(_folder(context)))
            size = write_download(path, model)
            signers = model.signers
        else:
            size = write_download(path, client.model(view.run))
    if as_json:
        say_json({"path": str(path), "bytes": size, "study": study.digest().hex(), "signed_by": signers})
        return
    _tell_download(path, size, as_json=False)
    if signers:
        say(f"Signed by {', '.join(signers)} as the model of {view.run} ({study.name} {study.digest().hex()[:12]}).")
    else:
        say(
            "WARNING: no site signed it. The server could read it, and could have put another in its place.",
            to_stderr=True,
        )


# --- parts ---


def _folder(context: Context) -> Path:
    """The credential's."""
    from quorate_operator.profile import find_profile

    return find_profile(context.obj, Path(), Path.home())


def _profile(context: Context) -> Profile:
    from quorate_operator.profile import Profile

    return Profile.load(_folder(context), time.time())


def _study_schema(context: Context, study: str) -> tuple[str, dict[str, Any]]:
    """A study's name, and what its data must look like; from a file, or from the server."""
    from quorate.study.study_file import StudyFile

    if study.endswith(".toml"):
        file = StudyFile.read(Path(study))
        name, parameters = file.name, file.task.parameters
    else:
        with _client(context) as client:
            published = client.study(study).study
        name, parameters = published.name, published.task.parameters
    schema = parameters.get("schema")
    if not isinstance(schema, dict):
        raise StudyError(
            f"The study {name} has no schema", expected="task.parameters.schema, or schema_file in its file"
        )
    return name, schema


def _release_key(context: Context) -> ReleaseKey:
    """The key to which sites seal models, made now if there is none."""
    from quorate_operator.release import KEY_NAME, load_key, make_key

    folder = _folder(context)
    if make_key(folder):
        say(f"Made {folder / KEY_NAME}. Nothing else opens the models of such studies: keep a copy.", to_stderr=True)
    return load_key(folder)


def _connect(profile: Profile) -> OperatorClient:
    from quorate_operator.client import OperatorClient

    return OperatorClient(profile)


def _client(context: Context) -> OperatorClient:
    return _connect(_profile(context))


def _act(context: Context, as_json: bool, act: Callable[[OperatorClient], RunView]) -> None:
    """Do something about a run and show the run."""
    with _client(context) as client:
        view = act(client)
    _show(as_json, json_output.run_json(view), lambda: tables.run_page(view, time.time()))


def _console() -> Terminal:
    return Terminal(width=None if sys.stdout.isatty() else _FILE_WIDTH)


def _busy(text: str) -> Any:
    return Terminal(stderr=True).status(text)


def _show(as_json: bool, content: object, page: Callable[[], RenderableType]) -> None:
    if as_json:
        say_json(content)
    else:
        _console().print(page())


def _tell_download(path: Path, size: int, as_json: bool) -> None:
    if as_json:
        say_json({"path": str(path), "bytes": size})
    else:
        say(f"Wrote {path}, {size} bytes.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. A refusal is one message on standard error and an exit code (``quorate.errors``)."""
    # The transport's own lines about a failed handshake would hide our message about it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    given = list(sys.argv[1:] if arguments is None else arguments)
    with unexpected_ends_it():
        try:
            with storage_errors():
                app(args=given)
        except QuorateError as error:
            if "--json" in given:
                say_json({"error": json_output.error_json(error)}, indent=None, to_stderr=True)
            else:
                say(f"quorate: {error}", to_stderr=True)
            sys.exit(error.exit_code)
