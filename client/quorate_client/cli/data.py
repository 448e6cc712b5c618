"""Commands about data sets: which records studies may use at this site, and in what form."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from quorate_client.approval.datasets import Datasets, open_account
from quorate_client.cli.ledger import site_ledger
from quorate_client.cli.output import (
    DEFAULT_STATE,
    JsonOption,
    StateOption,
    cell,
    err,
    moment,
    out,
    say,
    show_json,
    table,
)
from quorate_client.site.agreement import Dataset, Origin
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_identity

WITHOUT_PRIVACY = "WITHOUT privacy"

app = typer.Typer(help="Register the data sets that studies may use.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What studies call it at this site.")]


@app.command()
def add(
    name: NameArgument,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A .csv, .parquet or .npz file, or a folder of images.")],
    schema: Annotated[Path, typer.Option(metavar="FILE", help="The schema, TOML.")],
    test_fraction: Annotated[float, typer.Option(help="Share of the records kept for evaluation.")] = 0.2,
    unit: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The column (of an .npz file the array) that says whose record it is. It never leaves the site.",
        ),
    ] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Check records against a schema, one by one, and register them. They stay where they are.

    Records that were registered before, under whatever name, keep their privacy account.
    """
    from quorate_client.synthetic.marking.provenance import require_real
    from quorate_client.tasks.data.datasets import register
    from quorate_client.tasks.data.schema import named_unit, read_schema

    site = SiteFolder(state)
    with site_datasets(state) as datasets, site_ledger(state) as ledger:
        datasets.require_free(name)
        described = named_unit(read_schema(schema), unit)
        with err().status("Reading the records"):
            require_real(path, described, site)
            dataset = register(name, path, described, test_fraction, site)
            account = open_account(dataset, ledger)
        datasets.add(dataset)
    if as_json:
        show_json(_as_json(dataset, account))
        return
    people = "" if dataset.units is None else f" of {dataset.units} units"
    say(f"Registered {dataset.name}: {dataset.records} records{people} fit the schema.", "green")
    say(f"Privacy is promised to each {dataset.unit}. {_told(name, account)}")


@app.command("list")
def list_datasets(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """List the registered data sets."""
    with site_datasets(state) as datasets:
        found = datasets.all()
    if as_json:
        show_json([_as_json(dataset) for dataset in found])
        return
    rows = table("name", "kind", "records", "units", "test part", "made from", "path")
    for each in found:
        units = "-" if each.units is None else str(each.units)
        is_real, made = each.origin is None, cell("-") if each.origin is None else _made_from(each.origin)
        test_part = f"{each.test_fraction:.0%}" if is_real else "its source's"
        kind = each.kind if is_real else f"{each.kind}, synthetic"
        rows.add_row(cell(each.name), kind, str(each.records), units, test_part, made, cell(str(each.path)))
    out().print(rows)


@app.command()
def show(name: NameArgument, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Show one data set and its schema."""
    with site_datasets(state) as datasets, site_ledger(state) as ledger:
        dataset = datasets.get(name)
        account = ledger.entries.sums().names(dataset.source.name)
    if as_json:
        show_json(_as_json(dataset, account))
        return
    rows = table("", "")
    for key, value in _as_json(dataset, account).items():
        if key == "synthetic" and dataset.origin is not None:
            _add_origin(rows, dataset.origin)
        elif key not in ("schema", "synthetic"):
            rows.add_row(key, cell(", ".join(value) if isinstance(value, list) else str(value)))
    out().print(rows)
    show_json(dataset.schema)


@app.command()
def remove(name: NameArgument, state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """Forget a data set. The records are not touched, but those of a synthetic one, which were made here, are deleted.
    Studies that use it are refused from now on."""
    from quorate_client.synthetic.kept import alone

    site = SiteFolder(state)
    with site_datasets(state) as datasets, alone(site):
        dataset = datasets.get(name)
        datasets.remove(name)
        if dataset.origin is not None and dataset.path.parents[1] == site.synthetic.resolve():
            shutil.rmtree(dataset.path.parent, ignore_errors=True)
    if as_json:
        show_json({"removed": name})
        return
    touched = "were not touched" if dataset.origin is None else "were deleted; what they cost stays on the ledger"
    say(f"{name} is no longer registered; its records {touched}.")


@app.command()
def mock(
    schema: Annotated[Path, typer.Argument(metavar="SCHEMA.toml", help="The schema, TOML.")],
    rows: Annotated[int, typer.Option(help="How many records.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same records.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The new file; its name says mock.",
            show_default="SCHEMA.mock.csv or SCHEMA.mock.npz",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make up records that fit a schema, to write and try tasks with. They come from the schema alone, from nobody."""
    from quorate.study.mock_file import mock_name, write_mock
    from quorate_client.tasks.data.schema import read_schema

    content = read_schema(schema)
    path = output or Path(mock_name(schema.stem, content))
    write_mock(path, content, rows, seed)
    if as_json:
        show_json({"path": str(path), "rows": rows, "seed": seed})
        return
    say(f"Wrote {path}: {rows} records that are made up, of nobody.")
    say(f"To try a task on them: quorate-client data add mock {path} --schema {schema}")


@contextmanager
def site_datasets(folder: Path) -> Iterator[Datasets]:
    """The data sets of a site that has joined."""
    site = SiteFolder(folder)
    load_identity(site.keys)
    with site_state(site.database) as state:
        yield Datasets(state, time.time)


def _made_from(origin: Origin) -> Text:
    """Its source, and what it cost that."""
    style = "" if origin.epsilon is not None else "bold yellow"
    return cell(f"{origin.source.name}, {_promise(origin)}", style)


def _promise(origin: Origin) -> str:
    return WITHOUT_PRIVACY if origin.epsilon is None else f"epsilon {origin.epsilon:g} at delta {origin.delta:g}"


def _add_origin(rows: Table, origin: Origin) -> None:
    """What somebody must know who is to decide on a synthetic data set."""
    rows.add_row("synthetic", "made records: nobody's, but made from people's")
    rows.add_row("made from", _made_from(origin))
    rows.add_row("made by", cell(f"{origin.generator}, {moment(origin.made_unix_s)}"))
    for name, risk in origin.risks.items():
        rows.add_row(cell(f"risk: {name.replace('_', ' ')}"), f"{risk:.3f}")
    rows.add_row("utility loss", f"{origin.utility_loss:.3f} of area under the curve")
    rows.add_row("report", cell(f"SHA-256 {origin.report}"))


def _told(name: str, account: set[str]) -> str:
    others = sorted(account - {name})
    if not others:
        return "It has an account of its own."
    return f"It shares the privacy account of {', '.join(others)}: they are about the same people."


def _as_json(dataset: Dataset, account: set[str] | None = None) -> dict[str, Any]:
    """``account``: all names of the data set's account, where it was looked up."""
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "records": dataset.records,
        "unit": dataset.unit,
        "units": dataset.units,
        **({} if account is None else {"account": sorted(account)}),
        "test_fraction": dataset.test_fraction,
        "path": str(dataset.path),
        "synthetic": None if dataset.origin is None else _origin_as_json(dataset.origin),
        "schema": dataset.schema,
    }


def _origin_as_json(origin: Origin) -> dict[str, Any]:
    return origin.to_plain() | {"source": origin.source.name}
