"""Commands about synthetic data sets: made from a registered one, measured, and exported if they may be used."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from quorate.errors import AlreadyExistsError, InputError
from quorate.process.private_files import write_new
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.policy_file import policy_now
from quorate_client.cli.data import site_datasets
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
    warn,
)
from quorate_client.site.folder import SiteFolder

if TYPE_CHECKING:
    from quorate_client.approval.policy import Policy
    from quorate_client.synthetic.identifying.identifiers import Mitigation
    from quorate_client.synthetic.kept import Kept

app = typer.Typer(
    help="Make synthetic data sets from registered ones, and see what they disclose before they are used.",
    no_args_is_help=True,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The synthetic data set.")]
Format = Literal["html", "json"]


@app.command()
def make(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The registered data set that it is made from.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What it will be called.")],
    rows: Annotated[int, typer.Option(metavar="N", help="How many records it gets.")],
    epsilon: Annotated[
        float | None, typer.Option(metavar="E", help="What it may cost the source's records, for ever.")
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(metavar="D", help="With it; else the power of ten below the policy's rule for so many records."),
    ] = None,
    no_privacy: Annotated[
        bool, typer.Option("--no-privacy", help="Make it WITHOUT privacy, which the policy must allow.")
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Keep a column that looks like an identifier: it is none."),
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Leave a column out.")] = None,
    generalise: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=STEP", help="Round a column's numbers to multiples of a step.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Make a synthetic data set from a registered one. It is paid for on the ledger before any record is looked at.

    Interrupted, it can be repeated as it was: it then costs nothing more. The report says what it discloses; what
    exceeds the policy's limits is kept with its report and neither used nor exported.
    """
    if (epsilon is None) != no_privacy:
        raise InputError("How private shall it be?", expected="either --epsilon E or --no-privacy")
    from quorate_client.synthetic.limits import refusals
    from quorate_client.synthetic.making import Maker
    from quorate_client.synthetic.order import Order
    from quorate_client.synthetic.tools import shipped_tools

    site, policy = SiteFolder(state), policy_now(SiteFolder(state))
    order = Order(name, dataset, rows, epsilon, delta, _answers(keep or [], drop or [], generalise or []))
    with site_datasets(state) as datasets, site_ledger(state) as ledger, _shown_progress() as progress:
        try:
            made = Maker(site, datasets, ledger, policy, shipped_tools(), time.time, progress).make(order)
        except KeyboardInterrupt:
            warn("Interrupted. The same command again finishes it; what was paid for costs nothing again")
            raise
        kept = _kept(datasets, name)
    refused = refusals(kept.origin, policy)
    if as_json:
        show_json(_as_json(kept, policy) | {"notes": list(made.notes), "lineage": made.lineage})
        return
    say(f"Made {name}: {kept.dataset.records} synthetic records from {dataset}, {_privacy(kept)}.", "green")
    for note in made.notes:
        say(f"Note: {note}.")
    _tell_verdict(kept, refused)


@app.command("list")
def list_made(state: StateOption = DEFAULT_STATE, as_json: JsonOption = False) -> None:
    """List the synthetic data sets that were made here."""
    from quorate_client.synthetic.kept import all_kept, leftovers
    from quorate_client.synthetic.limits import refusals

    policy = policy_now(SiteFolder(state))
    with site_datasets(state) as datasets:
        found, unfinished = all_kept(datasets), leftovers(SiteFolder(state), datasets)
    if as_json:
        show_json([_as_json(each, policy) for each in found])
        return
    rows = table("name", "made from", "records", "privacy", "use", "made")
    for each in found:
        if not each.is_whole:
            usable = cell("DAMAGED", "bold red")
        else:
            usable = cell("REFUSED", "bold red") if refusals(each.origin, policy) else cell("usable", "green")
        privacy = cell(_privacy(each), "bold yellow" if each.origin.epsilon is None else "")
        source = cell(each.origin.source.name)
        records, made = str(each.dataset.records), moment(each.origin.made_unix_s)
        rows.add_row(cell(each.dataset.name), source, records, privacy, usable, made)
    out().print(rows)
    for folder in unfinished:
        warn(f"{folder} is no data set: somebody was interrupted. Make it again, or remove the folder")


@app.command()
def report(
    name: NameArgument,
    form: Annotated[
        Format | None, typer.Option("--format", help="A whole page, or all figures; else the figures that count.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write it.")] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Show what a synthetic data set discloses and what it is good for; also of one that was refused."""
    from quorate_client.synthetic.limits import refusals
    from quorate_client.synthetic.tools import report_page

    policy = policy_now(SiteFolder(state))
    with site_datasets(state) as datasets:
        kept = _kept(datasets, name)
    kept.require_whole()
    figures, lineage = kept.report(), kept.lineage()
    if form is None and output is None:
        if as_json:
            show_json(figures)
            return
        _tell_figures(kept, policy)
        _tell_verdict(kept, refusals(kept.origin, policy))
        return
    if form is None and output is not None and output.suffix.lower() not in (".json", ".html"):
        raise InputError("In which form?", expected="--format, or a file named .html or .json", got=output.name)
    if form == "json" or (form is None and output is not None and output.suffix.lower() == ".json"):
        if output is None:
            show_json(figures)
            return
        content = json.dumps(figures, indent=2, sort_keys=True).encode() + b"\n"
    else:
        content = report_page(figures, lineage, policy).encode()
    target = output if output is not None else Path(f"{name}.html")
    try:
        write_new(target, content)
    except AlreadyExistsError as error:
        raise AlreadyExistsError(f"{target} exists already", action="Name another file with -o") from error
    if as_json:
        show_json({"name": name, "path": str(target)})
        return
    say(f"Wrote {target}.", "green")


@app.command()
def export(
    name: NameArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="A new file, .csv or .parquet.")],
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Copy a synthetic data set out of the site's folder, marked as what it is. One that was refused stays."""
    from quorate_client.synthetic.limits import require_within

    with site_datasets(state) as datasets:
        kept = _kept(datasets, name)
        require_within(name, kept.origin, policy_now(SiteFolder(state)))
        kept.export(output)
    if as_json:
        show_json({"name": name, "path": str(output), "id": kept.lineage()["id"], "privacy": _privacy(kept)})
        return
    say(f"Wrote {kept.dataset.records} synthetic records to {output}, {_privacy(kept)}.", "green")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv or .parquet file.")],
    schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The schema of its columns, TOML; else those of the sets that are here."),
    ] = None,
    state: StateOption = DEFAULT_STATE,
    as_json: JsonOption = False,
) -> None:
    """Find out whether a file is a synthetic data set that was made here: by its mark, or by the watermark."""
    from quorate_client.synthetic.marking.provenance import examine

    with site_datasets(state) as datasets:
        found = examine(file, SiteFolder(state), datasets, schema)
    if as_json:
        show_json(found.to_json())
        return
    for line in found.in_words():
        say(line, "yellow" if found.is_ours else "")


def _answers(keep: list[str], drop: list[str], generalise: list[str]) -> Mitigation:
    from quorate_client.synthetic.identifying.identifiers import Mitigation

    steps = {}
    for pair in generalise:
        column, _, step = pair.rpartition("=")
        try:
            steps[column] = float(step)
        except ValueError:
            steps[column] = 0.0
        if not (column and steps[column] > 0):
            raise InputError("A column is generalised by a step above 0", expected="COLUMN=STEP", got=pair[:80])
    return Mitigation(frozenset(keep), frozenset(drop), steps)


def _kept(datasets: Datasets, name: str) -> Kept:
    from quorate_client.synthetic.kept import find

    return find(datasets, name)


@contextmanager
def _shown_progress() -> Iterator[Callable[[str, float], None]]:
    """A bar for each thing that is done, on a terminal."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err(), transient=True
    ) as shown:
        bars: dict[str, Any] = {}

        def tell(what: str, done: float) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=1.0)
            shown.update(bars[what], completed=done)

        yield tell


def _privacy(kept: Kept) -> str:
    """Of what was made; never left out where a set is named."""
    if kept.origin.epsilon is None:
        return "made WITHOUT privacy"
    return f"epsilon {kept.origin.epsilon:g}, delta {kept.origin.delta:g} per {kept.origin.source.unit}"


def _tell_verdict(kept: Kept, refused: list[str]) -> None:
    if kept.origin.epsilon is None:
        warn(
            f"{kept.dataset.name} was made WITHOUT privacy: its figures show what was tried, not that nothing is there"
        )
    if not refused:
        say(f"It stays within this site's limits: studies may use it and it may be exported ({_figures(kept)}).")
        return
    for reason in refused:
        say(f"REFUSED: {reason}.", "bold red")
    say("It is kept with its report, and neither used nor exported. What it cost stays on the ledger.")


def _figures(kept: Kept) -> str:
    risks = ", ".join(f"{kind.replace('_', ' ')} {risk:.3f}" for kind, risk in kept.origin.risks.items())
    return f"risks: {risks}; utility loss {kept.origin.utility_loss:.3f}"


def _tell_figures(kept: Kept, policy: Policy) -> None:
    limits = policy.synthetic
    say(f"{kept.dataset.name}: {kept.dataset.records} records, {_privacy(kept)}", "italic")
    rows = table("", "found", "limit")
    figures = [(kind.replace("_", " "), risk, limits.largest_risk) for kind, risk in kept.origin.risks.items()]
    for what, found, limit in (*figures, ("utility loss", kept.origin.utility_loss, limits.largest_utility_loss)):
        rows.add_row(what, f"{found:.4f}", "none" if limit is None else f"{limit:g}")
    out().print(rows)


def _as_json(kept: Kept, policy: Policy) -> dict[str, Any]:
    from quorate_client.synthetic.limits import refusals

    refused, is_whole = refusals(kept.origin, policy), kept.is_whole
    return {
        "name": kept.dataset.name,
        "source": kept.origin.source.name,
        "records": kept.dataset.records,
        "epsilon": kept.origin.epsilon,
        "delta": kept.origin.delta,
        "privacy": _privacy(kept),
        "generator": kept.origin.generator,
        "made_unix_s": kept.origin.made_unix_s,
        "risks": kept.origin.risks,
        "utility_loss": kept.origin.utility_loss,
        "is_whole": is_whole,
        "is_usable": is_whole and not refused,
        "refused": refused,
    }
