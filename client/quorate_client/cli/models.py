"""Commands about the models of finished runs, which every site that took part keeps."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from quorate.errors import AlreadyExistsError, NotFoundError
from quorate_client.cli.output import DEFAULT_STATE, JsonOption, StateOption, cell, out, say, show_json, table
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_identity

app = typer.Typer(help="The final models of runs in which this site took part.", no_args_is_help=True)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run, as `model list` shows it.")]
OutputOption = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write it.")]


@app.command("list")
def list_models(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """List the final models that this site keeps."""
    found = sorted(_models(state).items())
    if as_json:
        show_json([{"run": run, "path": str(path), "size_bytes": path.stat().st_size} for run, path in found])
        return
    rows = table("run", "size", "since")
    for run, path in found:
        told = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(path.stat().st_mtime))
        rows.add_row(cell(run), f"{path.stat().st_size:,} bytes", told)
    out().print(rows)


@app.command()
def export(
    run: RunArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write it.")] = Path(
        "model.npz"
    ),
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Copy a final model, an .npz file of named arrays and their description, out of the site's folder."""
    source = _models(state).get(run)
    if source is None:
        raise NotFoundError(
            f"This site has no final model of the run {run}",
            expected="a run that completed while this site took part",
            action="See `quorate-client model list`",
        )
    if output.exists():
        raise AlreadyExistsError(f"{output} exists already", action="Name another file with -o")
    shutil.copyfile(source, output)
    if as_json:
        show_json({"run": run, "path": str(output)})
        return
    say(f"Wrote {output}.", "green")


def _models(state: Path) -> dict[str, Path]:
    folder = SiteFolder(state)
    load_identity(folder.keys)  # a folder that is no site's is told so
    return folder.released_models()
