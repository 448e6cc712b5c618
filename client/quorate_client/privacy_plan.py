"""What a study's privacy means at this site, held against its policy: before anything is computed, and for planning."""

from __future__ import annotations

from quorate.errors import PrivacyRefusedError
from quorate.privacy.plan import TrainingPlan, training_plan
from quorate.study import Study
from quorate_client.ledger_entries import Account, Limits
from quorate_client.policy import PrivacyPolicy


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
    plan = training_plan(privacy.training, privacy.delta, records, study.rounds.count)
    if plan.noise_multiplier < policy.least_noise:
        raise PrivacyRefusedError(
            "The study adds less noise at this site than its policy demands",
            expected=f"privacy.least_noise = {policy.least_noise:g}",
            got=f"a noise multiplier of {plan.noise_multiplier:.3g}",
            action="Have the operator publish the study with a smaller epsilon",
        )
    return plan


def limits_of(account: Account, policy: PrivacyPolicy, delta: float, plan: TrainingPlan | None) -> Limits:
    """What an account may come to. The policy's epsilons are per record; a site's own statement has no limit."""
    if account.unit != "record" or plan is None:
        return Limits(delta)
    return Limits(
        delta,
        plan=(plan.study_event,),
        epsilon_per_run=policy.epsilon_per_run,
        epsilon_per_year=policy.epsilon_per_year,
        epsilon_ever=policy.epsilon_ever,
    )
