"""One question to four hospitals, with every protection at once, and with each of them left out.

Each variant is a study of its own. All have secure aggregation, and what differs is in one value here.
"""

from __future__ import annotations

from dataclasses import dataclass

WEAK, STRONG = 0.5, 2.0
"""Noise multipliers: standard deviation of the noise over what one hospital can change in the sum."""
CLIP = 1.0
EPSILON, DELTA = 3.0, 1e-3
"""Of the synthetic sets, and the delta of all statements."""


@dataclass(frozen=True, slots=True)
class Variant:
    """
    Args:
        is_synthetic: Trained on the synthetic sets; else on the real records.
        update: Noise multiplier on the parameters before sending; None: no such noise.
        average: After averaging.
    """

    name: str
    words: str
    is_synthetic: bool = True
    update: float | None = None
    average: float | None = None

    def study(self, rounds: int) -> str:
        """The study as an operator writes it, beside ``schema.toml``."""
        parts = [_HEAD.format(name=self.name, words=self.words, rounds=rounds)]
        if self.is_synthetic:
            parts.insert(0, 'training_data = "synthetic"\n')
            parts.append(f"[synthetic]\nlargest_epsilon = {EPSILON}\n")
        if self.update is not None or self.average is not None:
            parts.append(f"[privacy]\ndelta = {DELTA}\n")
        for place, noise in (("update", self.update), ("average", self.average)):
            if noise is not None:
                parts.append(f"[privacy.{place}]\nclip = {CLIP}\nnoise_multiplier = {noise}\n")
        return "\n".join(parts)


VARIANTS = (
    Variant("cancer-real", "real records", is_synthetic=False),
    Variant("cancer-synthetic", "synthetic records"),
    Variant("cancer-average", "synthetic, noise after", average=WEAK),
    Variant("cancer-update", "synthetic, noise before", update=WEAK),
    Variant("cancer-both", "synthetic, both noises", update=WEAK, average=WEAK),
    Variant("cancer-both-strong", "synthetic, both fourfold", update=STRONG, average=STRONG),
)

_HEAD = """\
name = "{name}"
purpose = "Tell malignant from benign breast masses: {words}."
sites = ["north", "south", "east", "west"]
seed = 1

[task]
name = "tabular-classifier"

[task.parameters]
schema_file = "schema.toml"
model = "logistic"
standardise = "range"
epochs = 3
batch_size = 64
learning_rate = 0.4

[rounds]
count = {rounds}
quorum = 3
deadline_s = 120
evaluate = "last"
weights = "equal"

[protection]
mode = "secagg"

[release]
model = "operator"
"""
