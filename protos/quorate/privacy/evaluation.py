"""How a study's evaluation is told: in which form, with how much noise, at what cost.

What is counted on held-out records is opened to all sites of a study, or read by the server. Histograms of scores are
made of the people in them: a site that knew a person's features found out from those of 20 rounds, in 256 bins, who was
among the held-out ones. So a study with a ``[privacy]`` section tells 16 bins, after its last round only unless it says
otherwise, and ``[privacy.evaluation]`` puts noise on every count. Exact counts are outside of every epsilon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from quorate.privacy.plan import TrainingPlan
from quorate.privacy.update_noise import noise_share
from quorate.tally import EXACT, TallyForm, sensitivity

if TYPE_CHECKING:
    from quorate.study.study import Study

FEW_BINS: Final = 16
NOISE_ONE: Final = 1 << 8
"""Steps of noise to a record: so many that each site's share is ``schemes.MIN_STEPS`` or more in any usual study."""


def tally_form(study: Study) -> TallyForm:
    """How counts over held-out records travel in a study."""
    if study.privacy is None:
        return EXACT
    return TallyForm(FEW_BINS, NOISE_ONE if study.privacy.evaluation else 1)


def evaluation_sigma(study: Study, classes: int) -> float:
    """Standard deviation of what each site adds to each of its counts, in steps; 0 without noise."""
    if study.privacy is None or study.privacy.evaluation is None:
        return 0.0
    return study.privacy.evaluation.noise_multiplier * sensitivity(classes) * NOISE_ONE * noise_share(study)


def evaluation_plan(study: Study) -> TrainingPlan | None:
    """What is spent of held-out records: a release of all of them after each evaluated round. None without noise."""
    if study.privacy is None or study.privacy.evaluation is None:
        return None
    noise = study.privacy.evaluation.noise_multiplier
    return TrainingPlan(1.0, noise, 1, study.evaluations + study.privacy.spare_rounds)
