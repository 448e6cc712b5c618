"""Makes a synthetic data set: allowed, checked, planned, paid, made, settled, measured, put in place; in this order.

Nothing that the generator sees is more than the source's training part. The held-out part is looked at after that, by
the report, and no table depends on it.

**Killed anywhere, and repeated.** The same request gives the same table, to the byte, with the same noise: the seed is
a function of the request under the site's key, and everything that the sums depend on is in the request (``request``).
So to make it again is the same release of the same mechanism on the same records, whether or not somebody saw a
part of the first one; the reservation that is on the ledger pays for both, and is settled by whichever comes to it.
Before the reservation nothing was drawn from the records. If the program, the machine or the records changed in
between, it is another request: its noise is independent of the first one's, and it is paid for in full, as is said.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quorate.errors import BudgetExhaustedError
from quorate.identity import parse_name
from quorate_client.approval.datasets import Datasets, require_account
from quorate_client.approval.policy import Policy
from quorate_client.approval.privacy_cost import account_of, limits_of_policy
from quorate_client.ledger.entries import SYNTHESISE, Charge, Unbounded
from quorate_client.ledger.ledger import Ledger, Reservation
from quorate_client.ledger.sums import RunSums
from quorate_client.site.agreement import Dataset, Origin
from quorate_client.site.folder import SiteFolder
from quorate_client.synthetic import kept
from quorate_client.synthetic.digits import cut
from quorate_client.synthetic.identifying.identifiers import mitigated, require_none
from quorate_client.synthetic.marking import watermark
from quorate_client.synthetic.marking.lineage import COLUMN, lineage_of, short_id
from quorate_client.synthetic.order import (
    Order,
    delta_of,
    in_words,
    require_no_marked_column,
    require_noise,
    require_permitted,
    require_rows,
    require_source,
)
from quorate_client.synthetic.request import (
    Request,
    commitment,
    derived,
    program,
    site_key,
    source_fingerprint,
    watermark_key,
)
from quorate_client.tasks.data.datasets import index_of, load_table
from quorate_client.tasks.data.schema import TabularSchema, schema_dict
from quorate_client.tasks.data.table import Table

_STUDY = "synthetic:"
"""On the ledger before a set's name. No study is called so."""

Progress = Callable[[str, float], None]
"""Is told what is being done, and the share of it that is done."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What makes and measures.

    Args:
        modules: Whose code a table depends on.
        plan, generate: As in ``synthetic/generator``. assess: Returns a report. page: A report and its lineage as HTML,
            held against a policy.
    """

    generator: str
    modules: tuple[str, ...]
    plan: Callable[[TabularSchema, float | None, float], Any]
    generate: Callable[..., Table]
    assess: Callable[..., Any]
    page: Callable[[Any, Mapping[str, Any], Policy], str]


@dataclass(frozen=True, slots=True)
class Made:
    """A set that is registered, with what there is to tell of how it was made."""

    dataset: Dataset
    lineage: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is known before anything is paid."""

    source: Dataset
    schema: TabularSchema
    training: Table
    held_out: Table
    plan: Any
    request: Request
    key: bytes

    @property
    def seed(self) -> bytes:
        return self.request.seed(self.key)


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes sets at one site, under the policy as it was read.

    Args:
        wall: Unix seconds.
    """

    site: SiteFolder
    datasets: Datasets
    ledger: Ledger
    policy: Policy
    tools: Tools
    wall: Callable[[], float]
    progress: Progress = lambda _, __: None

    def make(self, order: Order) -> Made:
        """
        Raises:
            InputError, AlreadyExistsError, NotFoundError, DataError: the order cannot be carried out.
            PrivacyRefusedError: the policy or the generator does not allow it. BudgetExhaustedError, LedgerError: it
            is not paid. In each of these cases nothing was made and nothing but the refusal written.
            DiskFullError, StorageError: it was paid, perhaps, and nothing is in place; repeated, it costs nothing more.
        """
        parse_name(order.name, "data set")
        with kept.alone(self.site):
            self.datasets.require_free(order.name)
            prepared = self._prepare(order)
            notes = kept.clear_place(self.site, self.datasets, order.name)
            reservation = self._pay(prepared, notes)
            table, found = self._generate(prepared)
            if reservation is not None and reservation.is_open:
                self.ledger.spend(reservation, prepared.plan.events)
            report = self._measure(prepared, table)
            dataset, lineage = self._store(prepared, table, report, is_watermarked=found.is_ours)
            self.datasets.add(dataset)
        if not found.is_ours:
            notes.append(
                f"it carries no watermark: of its {found.distinct} distinct rows too few are free to choose "
                f"({watermark.MIN_DISTINCT} are needed)"
            )
        return Made(dataset, lineage, tuple(notes))

    # --- before anything is paid ---

    def _prepare(self, order: Order) -> _Prepared:
        source = self.datasets.get(order.dataset)
        require_source(source)
        schema = kept.schema_of(source)
        require_rows(order.rows)
        require_permitted(self.policy, order)
        self.progress("reading the records", 0.0)
        units = index_of(source)[0].counts[0]
        delta = delta_of(self.policy, order, units)
        training, held_out = load_table(source, schema)
        require_none(schema, training, order.answers)
        _, held_out = mitigated(schema, held_out, order.answers)
        schema, training = mitigated(schema, training, order.answers)
        require_no_marked_column(schema)
        plan = self.tools.plan(schema, order.epsilon, delta)
        require_noise(self.policy, plan)
        key = site_key(self.site)
        request = Request(
            order.name,
            source.name,
            source_fingerprint(key, source),
            schema_dict(schema),
            order.rows,
            order.epsilon,
            delta,
            self.tools.generator,
            in_words(order.answers),
            program(self.tools.modules),
        )
        return _Prepared(source, schema, training, held_out, plan, request, key)

    # --- paying ---

    def _pay(self, prepared: _Prepared, notes: list[str]) -> Reservation | None:
        """The reservation, None without privacy."""
        request, ledger = prepared.request, self.ledger
        account = account_of(prepared.source)
        study, run = f"{_STUDY}{request.name}", f"synthetic-{request.digest.hex()[:12]}"
        require_account(prepared.source, ledger)
        ledger.note_limits(self.policy.privacy.limits)
        if request.epsilon is None:
            ledger.record_unbounded(account, study, request.digest, run)
            return None
        charge = Charge(account, study, request.digest, run, 0, 0, prepared.plan.events, SYNTHESISE)
        paid = ledger.paid(charge)
        if paid is not None:
            notes.append("it was paid for before, when it was made or begun: it costs nothing again")
            return paid
        if any(each.study == study and each.open for each in ledger.entries.sums().runs(account)):
            notes.append(
                "an earlier make of this name was paid for and not finished. What was asked for, the program, the "
                "machine or the records are not the same now, so it cannot be repeated, and this one was paid for anew"
            )
        limits = limits_of_policy(account, self.policy.privacy)
        try:
            return ledger.reserve(charge, limits, self.wall())
        except BudgetExhaustedError as error:
            left = ledger.left(account, limits)
            raise BudgetExhaustedError(
                f"Making {request.name} would spend more of the privacy budget of {account} than is left",
                expected=error.expected,
                got=error.got + (f"; left for ever: {left:.3g}" if math.isfinite(left) else ""),
                action="Make it with a smaller epsilon, or have whoever is responsible for policy.toml change it",
            ) from error

    def _sets_of(self, source: Dataset) -> int:
        """How many sets were made, or begun, of the people in a source, whatever they were called."""
        account = account_of(source)
        with self.ledger.entries.reading() as sums:
            uses: list[RunSums | Unbounded] = [*sums.runs(account), *sums.unbounded(account)]
        return len({each.run for each in uses if each.study.startswith(_STUDY)})

    # --- after it was paid ---

    def _generate(self, prepared: _Prepared) -> tuple[Table, watermark.Finding]:
        wanted = math.ceil(prepared.request.rows * watermark.SPARE)
        candidates = self.tools.generate(
            prepared.plan,
            prepared.schema,
            prepared.training,
            wanted,
            derived(prepared.seed, "generate"),
            lambda done: self.progress("making the records", done),
        )
        candidates = cut(prepared.schema, candidates)
        key, seed = watermark_key(prepared.key), derived(prepared.seed, "choose")
        return watermark.thinned(key, prepared.schema, candidates, prepared.request.rows, seed)

    def _measure(self, prepared: _Prepared, table: Table) -> Any:
        tools, request = self.tools, prepared.request

        def again(records: Table, seed: bytes) -> Table:
            return cut(prepared.schema, tools.generate(prepared.plan, prepared.schema, records, request.rows, seed))

        return tools.assess(
            prepared.schema,
            prepared.training,
            prepared.held_out,
            table,
            again,
            request.epsilon,
            request.delta,
            derived(prepared.seed, "report"),
            lambda done: self.progress("measuring what they disclose and what they are good for", done),
        )

    def _store(
        self, prepared: _Prepared, table: Table, report: Any, *, is_watermarked: bool
    ) -> tuple[Dataset, dict[str, Any]]:
        """Write all files and rename their folder: from then on they are whole."""
        self.progress("writing", 0.0)
        request, seed = prepared.request, prepared.seed
        told = json.dumps(report.to_json() | {kept.SALT: derived(seed, "salt").hex()}, sort_keys=True).encode()
        origin = Origin(
            source=prepared.source,
            generator=request.generator,
            epsilon=request.epsilon,
            delta=request.delta,
            seed_commitment=commitment(seed),
            made_unix_s=self.wall(),
            risks=dict(report.risks),
            utility_loss=report.utility_loss,
            report=hashlib.sha256(told).hexdigest(),
            lineage="",
        )
        sets = self._sets_of(prepared.source)
        lineage = lineage_of(request, origin, prepared.plan.events, sets=sets, is_watermarked=is_watermarked)
        origin = replace(origin, lineage=hashlib.sha256(kept.written(lineage)).hexdigest())
        with kept.workplace(self.site) as folder:
            content = kept.write_records(folder, prepared.schema, table, short_id(origin.seed_commitment))
            kept.write_told(folder, told, self.tools.page(report, lineage, self.policy), lineage)
            kept.put_in_place(self.site, folder, request.name)
        path = (self.site.synthetic / request.name / kept.RECORDS).resolve()
        schema = schema_dict(prepared.schema) | {"file": {"delimiter": ",", "ignore": [COLUMN], "unit": None}}
        return Dataset(
            request.name,
            "tabular",
            path,
            schema,
            prepared.source.test_fraction,
            table.records,
            content=content,
            origin=origin,
        ), lineage
