"""What a study's privacy means at this site, held against its policy: before anything is computed, and for planning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quorate.errors import PrivacyRefusedError
from quorate.privacy.events import Event
from quorate.privacy.plan import TrainingPlan, site_event, training_plan
from quorate.study.privacy_section import Privacy
from quorate.study.study import Study
from quorate_client.approval.policy import PrivacyPolicy
from quorate_client.ledger.entries import Account, Limits
from quorate_client.site.agreement import Dataset


def plan_training(study: Study, policy: PrivacyPolicy, records: int) -> TrainingPlan | None:
    """How DP-SGD runs at a site with so many training records; None where the study has none of it.

    Raises:
        PrivacyRefusedError: the policy does not allow it. PrivacyUnsupportedError: the records are too few.
    """
    privacy = study.privacy
    if privacy is None or privacy.training is None:
        return None
    if records < policy.least_records:
        raise PrivacyRefusedError(
            "The data set has fewer records than this site's policy demands",
            expected=f"privacy.least_records = {policy.least_records}",
            got=f"{records} training records",
        )
    if privacy.delta > policy.delta_for(records):
        raise PrivacyRefusedError(
            "The study's delta is too large for this data set",
            expected=f"at most {policy.delta_for(records):.2g}",
            got=f"privacy.delta = {privacy.delta:g}",
            action="Have the operator publish the study with a smaller delta, or set privacy.largest_delta",
        )
    plan = training_plan(privacy, privacy.training, records, study.rounds.count)
    if plan.noise_multiplier < policy.least_noise:
        raise PrivacyRefusedError(
            "The study adds less noise at this site than its policy demands",
            expected=f"privacy.least_noise = {policy.least_noise:g}",
            got=f"a noise multiplier of {plan.noise_multiplier:.3g}",
            action="Have the operator publish the study with a smaller epsilon",
        )
    return plan


def limits_of(
    account: Account, policy: PrivacyPolicy, privacy: Privacy, rounds: int, plan: TrainingPlan | None
) -> Limits:
    """What an account may come to: what the study plans for all its rounds, and per record the policy's epsilons."""
    of_site, limits = site_event(privacy), limits_of_policy(account, policy)
    if account.unit == "site" and of_site is not None:
        return replace(limits, plan=(replace(of_site, count=rounds + privacy.spare_rounds),))
    return replace(limits, plan=(plan.study_event,) if plan is not None else None)


def account_of(dataset: Dataset) -> Account:
    """Of the records that are trained on. A synthetic data set has none of its own: its source's are told of."""
    return Account(dataset.source.name, dataset.source.unit)


def account_of_test_part(dataset: Dataset) -> Account:
    """Of the held-out records, which for a synthetic data set are its source's: each is counted by itself, also where
    the data set names units."""
    return Account(dataset.source.name, "record", "test")


def limits_of_policy(account: Account, policy: PrivacyPolicy) -> Limits:
    """The policy's epsilons, which are per record: what is stated of whole sites has none."""
    if account.unit == "site":
        return Limits(policy.delta)
    return Limits(
        policy.delta,
        epsilon_per_run=policy.epsilon_per_run,
        epsilon_per_year=policy.epsilon_per_year,
        epsilon_ever=policy.epsilon_ever,
        counts_unbounded=policy.unbounded == "refuse",
    )


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a study would bring an account to. Epsilons at the policy's delta.

    Args:
        stated: What the study promises of itself, at its own delta.
        before, after: Of all studies that were begun on the data set, without and with it.
        unbounded: How many runs used the records without a bound.
        limits: What the policy says, by its key, with what it is held against.
        rounds_left: How many of these rounds the policy still lets the data set afford; None without a limit.
    """

    stated: float
    before: float
    after: float
    unbounded: int
    limits: dict[str, tuple[float, float]]
    rounds_left: int | None

    @property
    def refused_by(self) -> list[str]:
        return [name for name, (limit, epsilon) in self.limits.items() if epsilon > limit]


def outlook_of(
    made: TrainingPlan, begun: Sequence[Event], unbounded: int, delta: float, policy: PrivacyPolicy
) -> Outlook:
    """Hold a plan against what was begun. The last year's limit is held against all that was ever begun, which is at
    least as much.

    Args:
        begun: What the other studies on the data set may release in all.
        unbounded: How many runs used its records without a bound.
        delta: The study's.
    """
    from quorate.privacy.accounting import adaptive_epsilon, affordable_count, epsilon

    of_study = made.study_event
    before, after = (adaptive_epsilon(events, policy.delta) for events in (begun, [*begun, of_study]))
    is_endless = unbounded > 0 and policy.unbounded == "refuse"
    lasting = math.inf if is_endless else after
    limits = {
        name: (limit, against)
        for name, limit, against in (
            ("epsilon_per_run", policy.epsilon_per_run, epsilon([of_study], policy.delta)),
            ("epsilon_per_year", policy.epsilon_per_year, lasting),
            ("epsilon_ever", policy.epsilon_ever, lasting),
        )
        if limit is not None
    }
    least = min((limit for limit in (policy.epsilon_per_year, policy.epsilon_ever) if limit is not None), default=None)
    rounds_left = None
    if least is not None:
        steps = affordable_count(least, policy.delta, made.noise_multiplier, made.sampling_rate, begun)
        rounds_left = 0 if is_endless else steps // made.steps
    return Outlook(epsilon([of_study], delta), before, after, unbounded, limits, rounds_left)
