"""The report as a value: all figures, what limits are on, and JSON that gives the same report back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from quorate.errors import DataError
from quorate.study.section import Frozen
from quorate_client.synthetic.report.disclosure.attribute import Attribute
from quorate_client.synthetic.report.disclosure.linkability import Linkability
from quorate_client.synthetic.report.disclosure.membership import Membership
from quorate_client.synthetic.report.disclosure.singling_out import SinglingOut
from quorate_client.synthetic.report.quality.bias import Bias
from quorate_client.synthetic.report.quality.dictionary import Entry
from quorate_client.synthetic.report.quality.fidelity import Fidelity
from quorate_client.synthetic.report.quality.hygiene import Hygiene
from quorate_client.synthetic.report.quality.utility import Utility

FORMAT: Literal["quorate.synthetic.report/1"] = "quorate.synthetic.report/1"
FEW_RECORDS = 1000
"""Below it intervals are wide, and what an attack did not find says little."""


class Report(Frozen):
    """All that was measured. Figures over many records only: no record's values are in it.

    Args:
        epsilon: Of the generator; None: it promises nothing.
        training: How many real records the set was made from.
        held_out: How many real records the generator never saw.
        synthetic: How many records the set has.
    """

    format: Literal["quorate.synthetic.report/1"] = FORMAT
    epsilon: float | None
    delta: float
    training: int
    held_out: int
    synthetic: int
    membership: Membership
    attribute: Attribute
    singling_out: SinglingOut
    linkability: Linkability
    hygiene: Hygiene
    fidelity: Fidelity
    bias: Bias
    utility: Utility
    dictionary: tuple[Entry, ...]

    @property
    def risks(self) -> Mapping[str, float]:
        """What a site's limit is compared with, 0 to 1 each: what an attack gains beyond its baseline.

        It is the point that was found where that is more than chance (``figures.py``), and 0 where it is not. Of
        membership the true positives at 1 % false ones less that 1 %; of attributes and of guesses that single
        somebody out the worst; of linkability the share of what was left to gain.
        """
        attribute, guess = self.attribute.worst, self.singling_out.worst
        return {
            "membership": self.membership.advantage.counted,
            "attribute": attribute.advantage.counted if attribute else 0.0,
            "singling_out": guess.counted if guess else 0.0,
            "linkability": self.linkability.advantage.counted,
        }

    @property
    def utility_loss(self) -> float:
        """The AUC lost on real held-out records, by the better of two learners; may be below 0 by chance.

        Where it cannot be measured, all counts as lost: a limit refuses what was not shown.
        """
        return 1.0 if self.utility.loss is None else self.utility.loss.found

    @property
    def is_small(self) -> bool:
        """Whether there are too few real records to conclude anything from what was not found."""
        return self.training + self.held_out < FEW_RECORDS

    def to_json(self) -> dict[str, Any]:
        """JSON values; ``risks`` and ``utility_loss`` stand beside the figures that they follow from."""
        return {
            **self.model_dump(mode="json"),
            "risks": dict(self.risks),
            "utility_loss": self.utility_loss,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Report:
        """The report that ``to_json`` wrote.

        Raises:
            DataError: It is none, or its risks are not those that its figures give.
        """
        figures = {key: value for key, value in content.items() if key not in ("risks", "utility_loss")}
        try:
            report = cls.model_validate(figures)
        except ValidationError as error:
            raise DataError(
                "This is no report on a synthetic set",
                expected=f"JSON as {FORMAT} writes it",
                got=f"{error.error_count()} keys that are missing, unknown or of another type",
                action="Make the report anew",
            ) from None
        if content.get("risks") != report.risks or content.get("utility_loss") != report.utility_loss:
            raise DataError(
                "The report's risks do not follow from its figures",
                expected=f"risks {dict(report.risks)} and a utility loss of {report.utility_loss}",
                got="others",
                action="The file was changed after it was made: make the report anew",
            )
        return report
