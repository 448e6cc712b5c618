"""What the data sets have spent of their privacy and have left, for the site's own metrics and for nobody else.

Looked up from ledger and policy, so that it is right after a restart and after a command too; computed again only when
one of them changed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from quorate.errors import QuorateError
from quorate.process.metrics import LOOK_EVERY_S
from quorate_client.approval.datasets import Datasets
from quorate_client.approval.policy import Policy, PrivacyPolicy
from quorate_client.approval.policy_file import look_at_policy
from quorate_client.approval.privacy_cost import account_of, account_of_test_part, limits_of_policy
from quorate_client.daemon.metrics import Budget, ClientMetrics
from quorate_client.ledger.ledger import Ledger
from quorate_client.site.agreement import Dataset
from quorate_client.site.folder import SiteFolder

log = structlog.get_logger()


@dataclass(slots=True)
class BudgetWatch:
    """Keeps the metrics of data sets as they are. Lives in the daemon's event loop."""

    folder: SiteFolder
    datasets: Datasets
    ledger: Ledger
    metrics: ClientMetrics
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _seen: object = field(default=None, init=False)

    async def run(self) -> None:
        """Look for ever. Run it as a task and cancel it."""
        while True:
            try:
                await self.look()
            except QuorateError as error:
                log.warning("the privacy budgets could not be looked up", code=error.code, reason=str(error))
            await self.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Raises LedgerError, WrongStateError: what cannot be read stays as it was last shown."""
        datasets = self.datasets.by_age()
        self.metrics.datasets_are(dataset.records for dataset in datasets)
        policy = self._policy()
        is_naming = policy is not None and policy.dataset_names_in_metrics
        self.metrics.datasets_are_named(
            {number: dataset.name for number, dataset in enumerate(datasets, 1)} if is_naming else {}
        )
        if policy is None:
            return
        head = await asyncio.to_thread(self.ledger.entries.head)
        now = head, policy.privacy, tuple((each.name, each.unit, each.origin is None) for each in datasets)
        if now != self._seen:
            budgets = await asyncio.to_thread(_budgets, datasets, self.ledger, policy.privacy)
            limit = policy.privacy.epsilon_ever
            self.metrics.budgets_are(math.inf if limit is None else limit, budgets)
            self._seen = now

    def _policy(self) -> Policy | None:
        """None where it is broken: then nothing runs here, and no name is told."""
        try:
            return look_at_policy(self.folder)
        except QuorateError as error:
            log.debug("the policy cannot be read", code=error.code)
            return None


def _budgets(datasets: Sequence[Dataset], ledger: Ledger, policy: PrivacyPolicy) -> list[Budget]:
    """May take seconds, in which an accountant computes. A synthetic data set has no budget: its source has."""
    found = []
    for number, dataset in enumerate(datasets, 1):
        if dataset.origin is not None:
            continue
        for part, account in (("training", account_of(dataset)), ("test", account_of_test_part(dataset))):
            limits = limits_of_policy(account, policy)
            spent, left = ledger.spent(account, limits.delta), ledger.left(account, limits)
            found.append(Budget(number, "training" if part == "training" else "test", spent, left))
    return found
