"""Commands about data sets: which records studies may use at this site, and in what form."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from quorate_client.agreement import Dataset
from quorate_client.approvals import Datasets
from quorate_client.cli.output import (
    DEFAULT_STATE,
    JsonOption,
    StateOption,
    cell,
    err,
    out,
    say,
    show_json,
    table,
)
from quorate_client.folder import SiteFolder
from quorate_client.keys import load_identity
from quorate_client.state import site_state

app = typer.Typer(help="Register the data sets that studies may use.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What studies call it at this site.")]


@app.command()
def add(
    name: NameArgument,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A .csv, .parquet or .npz file, or a folder of images.")],
    schema: Annotated[Path, typer.Option(metavar="FILE", help="The schema, TOML.")],
    test_fraction: Annotated[float, typer.Option(help="Share of the records kept for evaluation.")] = 0.2,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Check records against a schema, one by one, and register them. They stay where they are."""
    from quorate_client.data import register
    from quorate_client.schema import read_schema

    with _datasets(state) as datasets:
        with err().status("Reading the records"):
            dataset = register(name, path, read_schema(schema), test_fraction)
        datasets.add(dataset)
    if as_json:
        show_json(_as_json(dataset))
        return
    say(f"Registered {dataset.name}: {dataset.records} records fit the schema.", "green")


@app.command("list")
def list_datasets(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """List the registered data sets."""
    with _datasets(state) as datasets:
        found = datasets.all()
    if as_json:
        show_json([_as_json(dataset) for dataset in found])
        return
    rows = table("name", "kind", "records", "test part", "path")
    for each in found:
        rows.add_row(cell(each.name), each.kind, str(each.records), f"{each.test_fraction:.0%}", cell(str(each.path)))
    out().print(rows)


@app.command()
def show(name: NameArgument, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Show one data set and its schema."""
    with _datasets(state) as datasets:
        dataset = datasets.get(name)
    if as_json:
        show_json(_as_json(dataset))
        return
    rows = table("", "")
    for key, value in _as_json(dataset).items():
        if key != "schema":
            rows.add_row(key, cell(str(value)))
    out().print(rows)
    show_json(dataset.schema)


@app.command()
def remove(name: NameArgument, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Forget a data set. The records are not touched; studies that use it are refused from now on."""
    with _datasets(state) as datasets:
        datasets.remove(name)
    if as_json:
        show_json({"removed": name})
        return
    say(f"{name} is no longer registered; its records were not touched.")


@contextmanager
def _datasets(folder: Path) -> Iterator[Datasets]:
    site = SiteFolder(folder)
    load_identity(site.keys)
    with site_state(site.database) as state:
        yield Datasets(state, time.time)


def _as_json(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "records": dataset.records,
        "test_fraction": dataset.test_fraction,
        "path": str(dataset.path),
        "schema": dataset.schema,
    }
