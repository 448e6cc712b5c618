"""What has to be said about a run, whoever asks: how little it was protected, what the server saw, what is not known.

The sentences are kept in one place because they are promises: a mode of protection without its sentences here cannot
be reported, and a test demands them for each mode.
"""

from __future__ import annotations

from quorate.privacy.statement import NEIGHBOURING_ROUNDS
from quorate.rounds.run import RunState
from quorate.study.study import Study

_WARNINGS = {
    "none": "No protection was used: updates were readable by the server. An update can reveal something of the "
    "records that it was trained on. Use this mode only where every site trusts the server with that, or with records "
    "that need no protection.",
    "secagg": "Updates were encrypted at the sites, and the server added what it cannot read. What protects them is a "
    "composition from the literature that has not yet been externally reviewed. The sums that the sites opened, and "
    f"the model, still say something of the records. {NEIGHBOURING_ROUNDS}",
    "enclave": "Updates were sealed to an attested machine, which opened and added them. That protects against the "
    "operator's software and staff, not against somebody with a probe on the memory bus. Verification is tested on "
    "genuine evidence; producing evidence has not been run on hardware. The sums that the sites opened, and the model, "
    f"still say something of the records. {NEIGHBOURING_ROUNDS}",
}
_SERVER_SAW_STUDY = {
    "none": (
        "Every site's update of every round that it contributed to, in the clear.",
        "Every site's weight: its number of training records.",
        "Every site's sums over its features for the standardisation, before they were added up.",
        "Every site's evaluation counts, where the study has an evaluation: records, summed loss, confusion matrix and "
        "histogram of scores. It could make up the sums, and so the models that they are of.",
        "The global model: it follows from the study and the updates, and checkpoints of it were kept at the server.",
    ),
    "secagg": (
        "No site's update, weight, number of records, statistics or evaluation counts: they came encrypted, and what "
        "opens their sum passed through the server sealed for the sites.",
        "Never the global model: if the study releases it to the operator, the sites sealed it to the operator's key.",
        "Which sites hold the same model as the others, and the size of the model.",
        "The rates of all sites together that the sites told it (loss, accuracy and the like), rounded to 3 digits, "
        "each over at least 10 records.",
    ),
    "enclave": (
        "No site's update, weight, number of records, statistics or evaluation counts: they came sealed to the "
        "attested machine, which has all of them, and the sums left it sealed for the sites.",
        "Never the global model: if the study releases it to the operator, the sites sealed it to the operator's key.",
        "Which sites hold the same model as the others, and the size of the model.",
        "The rates of all sites together that the sites told (loss, accuracy and the like), rounded to 3 digits, each "
        "over at least 10 records.",
    ),
}
_SERVER_SAW_GUEST = {
    "none": (
        "Every message of the Flower app, both ways, in the clear: models, updates, metrics and configuration.",
        "The global model: the app's ServerApp ran at the server.",
    ),
}
_NOT_PRIVATE = (
    "No noise was added for differential privacy: the model itself may reveal something of the records that it was "
    "trained on."
)
_MADE_UP = (
    "Synthetic records repeat what their generator keeps of the real ones and nothing else. What is rare may be "
    "missing in them, and with it in the model. Each site has the report of its set."
)
_OUTSIDE_THE_MACHINE = (
    "What sites sent was sealed to the attested machine besides. Around it the server saw sizes and times, the code of "
    "a site that did not trust the machine, and what the machine gave out: sums, codes of refusals, results of rounds."
)
_SERVER_ALWAYS_SEES = (
    "Who took part in which round, when, for how long it worked, and how many bytes it sent and received.",
    "It did not see the records themselves: they stayed at the sites.",
)


def protection_warning(protection: str) -> str:
    """What everybody who meets the run must read about its protection."""
    return _WARNINGS[protection]


def server_could_see(kind: str, protection: str, *, is_attested: bool = False) -> tuple[str, ...]:
    """What the server could read of the run, and what it could not, one sentence each."""
    return (
        *(_SERVER_SAW_GUEST if kind == "guest" else _SERVER_SAW_STUDY)[protection],
        *((_OUTSIDE_THE_MACHINE,) if is_attested else ()),
        *_SERVER_ALWAYS_SEES,
    )


def limits(state: RunState, study: Study) -> tuple[str, ...]:
    """What the result does not show, one sentence each. What the study promises is in its privacy statement."""
    unfinished = f"The run is {state}: it shows the rounds that counted so far, not those that were planned."
    return (
        *(() if state is RunState.COMPLETED else (unfinished,)),
        "Quorate has not yet been externally reviewed. This includes its use of cryptography: mutual TLS, certificates "
        "and signatures.",
        "Metrics are pooled over the records that the sites kept for testing. They do not say how the model does on "
        "other records, nor whether it serves all groups of patients equally well.",
        "Sites are believed: a site that sends a wrong update or wrong counts changes the result unnoticed.",
        *((_MADE_UP,) if study.training_data != "real" else ()),
        *((_NOT_PRIVATE,) if study.training_data != "synthetic" and study.privacy is None else ()),
    )
