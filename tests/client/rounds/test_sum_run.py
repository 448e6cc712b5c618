"""Sites with real engines, asked by the server's own loop: what they arrive at, what they tell, and what they do not
do. What is not said to be of one mode is of both, or of secure aggregation."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from quorate.aggregation import words
from quorate.aggregation.packing import Packing
from quorate.errors import BudgetExhaustedError, QuorumMissingError, StudyKeyRefusedError, SumRefusedError
from quorate.rounds.instruction import Instruction, Phase, Reply
from quorate.study.study import Optimizer, Protection, Release, Rounds
from quorate.wire.sum_messages import (
    SumWork,
    sum_answer_from_bytes,
    sum_work_from_bytes,
    sum_work_to_bytes,
)
from quorate_client.rounds.evaluation import Evaluator
from quorate_client.rounds.model.state import THETA_OFFSET
from quorate_client.rounds.sums.pooled import DIGITS
from quorate_client.rounds.training import Trainer
from tests.client.engine_kit import (
    installed_fixture,  # noqa: F401  # a fixture, found because it is here
    records_of,
)
from tests.client.linear_task import SECRET
from tests.client.run_kit import NAMES, SEED_BYTES, EngineSite, an_agreement, engines
from tests.server.sites_kit import OPERATOR, opened
from tests.server.study_kit import RUN, MemoryExchange

EAST, NORTH, SOUTH, WEST = NAMES
OTHERS = (EAST, NORTH, SOUTH)
RATES = {"train_loss", "loss", "accuracy", "auc", "recall", "specificity"}
pytestmark = pytest.mark.usefixtures("installed")
BOTH = pytest.mark.parametrize("mode", ["secagg", "none"])


def at(instruction: Instruction, phase: Phase, round_number: int) -> bool:
    return (instruction.phase, instruction.round_number) == (phase, round_number)


def same_everywhere(exchange: MemoryExchange) -> dict[str, bytes]:
    """The model states that every site holds, byte for byte, under their digests' names."""
    first, *others = [site.model_states() for site in exchange.sites.values()]
    assert first
    for other in others:
        assert other == first
    return first


def told_by(exchange: MemoryExchange) -> list[dict[str, float]]:
    """All metrics that any site told, of any round."""
    told = []
    for _, instruction, reply in exchange.stored.values():
        if instruction.phase in (Phase.UPLOAD, Phase.RELEASE) and not reply.code:
            told += [dict(values) for values in sum_answer_from_bytes(reply.body).metrics.values()]
    return told


# --- the model ---


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(),
        Optimizer(name="fedadam", learning_rate=0.05),
        Optimizer(name="fedprox", proximal_mu=0.1),
        Optimizer(name="fedavgm", learning_rate=0.5),
    ],
    ids=lambda optimizer: optimizer.name,
)
def test_all_sites_hold_the_same_model_bit_for_bit_and_it_is_the_one_without_protection(
    tmp_path: Path, optimizer: Optimizer
) -> None:
    rounds = Rounds(count=5, quorum=3, checkpoint_every=2)
    models = {}
    for mode in ("secagg", "none"):
        with engines(tmp_path / mode, mode=mode, rounds=rounds, optimizer=optimizer) as exchange:
            exchange.loop().run()
            assert all(not site.errors for site in exchange.sites.values())
            assert {name.split("-")[1] for name in same_everywhere(exchange)} == {"4", "5"}
            weights = [site.weights() for site in exchange.sites.values()]
            assert all(np.array_equal(weights[0], other) for other in weights)
            models[mode] = weights[0]
            packing = Packing(exchange.study.protection.value_bound, len(NAMES))
    # Each round adds at most half a step for each site. FedAdam divides by roots of second moments of at least tau.
    off = 5 * len(NAMES) * packing.step / 2
    if optimizer.name == "fedadam":
        off *= optimizer.learning_rate / optimizer.tau
    assert np.abs(models["secagg"] - models["none"]).max() < 2 * off
    assert np.abs(models["secagg"]).max() > 100 * off or optimizer.name == "fedadam"
    assert not np.array_equal(models["secagg"], models["none"]), "the sums were opened from ciphertext"


def test_the_metrics_are_those_of_all_test_records_together(tmp_path: Path) -> None:
    results = {}
    for mode in ("secagg", "none"):
        with engines(tmp_path / mode, mode=mode) as exchange:
            exchange.loop().run()
            results[mode] = {number: dict(result.metrics) for number, result in exchange.results.items()}
    assert set(results["secagg"]) == {1, 2, 3}
    for number, metrics in results["secagg"].items():
        assert set(metrics) == RATES
        assert metrics == pytest.approx(results["none"][number], abs=10**-DIGITS)


def test_three_sites_of_which_none_may_be_missed_and_two_sites_are_enough(tmp_path: Path) -> None:
    for names, colluders in ((OTHERS, 1), (OTHERS[:2], 0)):
        changes: dict[str, Any] = {
            "rounds": Rounds(count=2, quorum=len(names)),
            "protection": Protection(colluders=colluders),
        }
        with engines(tmp_path / str(len(names)), names, **changes) as exchange:
            exchange.loop().run()
            same_everywhere(exchange)
            assert all(result.contributed == names for result in exchange.results.values())


def test_the_model_goes_to_the_operator_only_where_the_study_says_so_and_sealed_to_its_key(tmp_path: Path) -> None:
    to_operator = Release(model="operator", operator_key=OPERATOR.public_key.hex())
    for release in (Release(), to_operator):
        folder = tmp_path / release.model
        with engines(folder, rounds=Rounds(count=1, quorum=3), release=release) as exchange:
            exchange.loop().run()
            kept = (exchange.sites[EAST].folder / "runs" / RUN / "model.npz").read_bytes()
            stored = [reply for _, i, reply in exchange.stored.values() if i.phase is Phase.RELEASE]
            assert all(bool(reply.blobs) == (release.model == "operator") for reply in stored)
            if release.model == "operator":
                assert opened(exchange) == kept
                assert exchange.model is not None
                assert kept[:64] not in exchange.model
            else:
                assert exchange.model is None


# --- sites that come and go ---


@pytest.mark.parametrize("phase", [Phase.UPLOAD, Phase.VOTE, Phase.REVEAL])
def test_a_site_that_was_started_again_within_a_sum_refuses_what_is_left_of_it_and_is_back_in_the_next(
    tmp_path: Path, phase: Phase
) -> None:
    with engines(tmp_path) as exchange:
        west: EngineSite = exchange.sites[WEST]
        west.before = lambda instruction: west.restart() if at(instruction, phase, 2) else None
        exchange.loop().run()
        assert {key: error.code for key, error in west.errors.items()} == {(phase.value, 2): "vote_refused"}
        is_lost = phase is Phase.UPLOAD  # later its part is in the sum all the same
        assert exchange.results[2].contributed == (OTHERS if is_lost else NAMES)
        assert exchange.results[2].missing == ({WEST: "vote_refused"} if is_lost else {})
        assert exchange.results[3].contributed == NAMES
        assert all(result.contributed == NAMES for number, result in exchange.results.items() if number != 2)
        same_everywhere(exchange)


@BOTH
def test_a_site_that_was_started_again_between_rounds_loses_nothing(tmp_path: Path, mode: str) -> None:
    first = Phase.HELLO if mode == "secagg" else Phase.UPLOAD
    with engines(tmp_path, mode=mode) as exchange:
        for site in exchange.sites.values():
            site.before = lambda instruction, site=site: site.restart() if instruction.phase is first else None
        exchange.loop().run()
        assert all(not site.errors for site in exchange.sites.values())
        assert all(result.contributed == NAMES for result in exchange.results.values())
        same_everywhere(exchange)


@BOTH
def test_a_site_that_missed_rounds_arrives_by_opening_the_old_sums(tmp_path: Path, mode: str) -> None:
    with engines(tmp_path, mode=mode, rounds=Rounds(count=4, quorum=3)) as exchange:
        west: EngineSite = exchange.sites[WEST]
        west.is_away = lambda instruction: 1 <= instruction.round_number <= 3
        exchange.loop().run()
        assert [exchange.results[number].missing for number in (1, 2, 3)] == [{WEST: "site_paused"}] * 3
        assert exchange.results[4].contributed == NAMES
        stored = {s.round_number: s for s in exchange.progress.sums}
        assert {blob.id for n in (1, 2) for blob in (stored[n].updates, stored[n].opening) if blob} <= set(west.fetched)
        same_everywhere(exchange)


@BOTH
def test_a_site_that_missed_what_came_before_a_checkpoint_arrives_from_it(tmp_path: Path, mode: str) -> None:
    with engines(tmp_path, mode=mode, rounds=Rounds(count=5, quorum=3, checkpoint_every=2)) as exchange:
        west: EngineSite = exchange.sites[WEST]
        checkpoints = []

        def note(instruction: Instruction) -> None:
            if instruction.round_number == 5:
                checkpoints.append(exchange.progress.checkpoint)

        west.is_away = lambda instruction: 1 <= instruction.round_number <= 4
        west.before = note
        exchange.loop().run()
        assert not west.errors
        assert exchange.results[5].contributed == NAMES
        assert checkpoints[0].id in west.fetched
        same_everywhere(exchange)
        leftovers = [path for path in west.spool.folder.iterdir() if path.name.startswith("model")]
        assert leftovers == []


def test_the_model_is_never_at_the_server_not_even_as_a_checkpoint(tmp_path: Path) -> None:
    """Under ``none`` a checkpoint is the model; here it is sealed for the sites."""
    with engines(tmp_path, rounds=Rounds(count=4, quorum=3, checkpoint_every=1)) as exchange:
        seen: list[bytes] = []
        put = exchange.blobs.put
        exchange.blobs.put = lambda data: seen.append(data) or put(data)  # type: ignore[func-returns-value,method-assign]
        states: set[bytes] = set()
        for site in exchange.sites.values():
            site.before = lambda _, site=site: states.update(site.model_states().values())
        exchange.loop().run()
        assert exchange.progress.checkpoint_round == 3
        thetas = {state[THETA_OFFSET : THETA_OFFSET + 16] for state in states}
        assert len(thetas) >= 4
        everything = [*seen, *exchange.blobs.content.values(), *(r.body for *_, r in exchange.stored.values())]
        assert not [theta for theta in thetas for data in everything if theta in data]


# --- what a site refuses ---


def test_an_update_that_is_not_finite_leaves_as_bounds_and_is_said_in_the_sites_log(tmp_path: Path) -> None:
    """A refusal would tell that the site's records made training end so. Its update is one of many, and bounded."""
    parameters = {"trouble": "nan", "trouble_at": WEST}
    with capture_logs() as logs, engines(tmp_path, rounds=Rounds(count=2, quorum=3), parameters=parameters) as exchange:
        exchange.loop().run()
        assert all(result.contributed == NAMES for result in exchange.results.values())
        assert np.isfinite(exchange.sites[WEST].weights()).all()
        assert [entry["coordinates"] for entry in logs if entry["event"] == "update clipped"] == [1, 1]
        same_everywhere(exchange)


def test_a_loss_that_is_no_number_is_no_refusal_either(tmp_path: Path) -> None:
    parameters = {"trouble": "lost", "trouble_at": WEST}
    with engines(tmp_path, rounds=Rounds(count=2, quorum=3), parameters=parameters) as exchange:
        exchange.loop().run()
        assert all(result.contributed == NAMES for result in exchange.results.values())
        same_everywhere(exchange)


@pytest.mark.parametrize("trouble", ["raise", "short"])
def test_whatever_goes_wrong_in_training_is_one_code_to_the_server_and_the_run_goes_on(
    tmp_path: Path, trouble: str
) -> None:
    parameters = {"trouble": trouble, "trouble_at": WEST}
    with engines(tmp_path, rounds=Rounds(count=3, quorum=3), parameters=parameters) as exchange:
        west: EngineSite = exchange.sites[WEST]
        exchange.loop().run()
        assert all(result.contributed == OTHERS for result in exchange.results.values())
        assert all(result.missing == {WEST: "site_interrupted"} for result in exchange.results.values())
        sent = [reply for site, i, reply in exchange.stored.values() if site == WEST and i.phase is Phase.UPLOAD]
        assert [(reply.code, reply.body, reply.blobs) for reply in sent[1:]] == [("site_interrupted", b"", ())] * len(
            sent[1:]
        )
        ciphertexts = [p for p in west.spool.folder.rglob("*") if p.is_file() and p.stat().st_size == POLYNOMIAL]
        assert {path.name for path in ciphertexts} <= {blob.hex() for blob in west.fetched}
        failed = west.state.database.execute("SELECT round FROM uploads WHERE failed").fetchall()
        assert failed == [(1,), (2,)], "after two times it is not tried again"
        same_everywhere(exchange)


POLYNOMIAL = words.POLYNOMIAL_BYTES


def test_when_nobody_can_train_the_run_pauses(tmp_path: Path) -> None:
    with engines(tmp_path, parameters={"trouble": "raise"}) as exchange:
        with pytest.raises(QuorumMissingError, match="site_interrupted"):
            exchange.loop().run()
        assert exchange.results == {}


def test_a_site_without_keys_refuses_every_exchange(tmp_path: Path) -> None:
    with engines(tmp_path) as exchange:
        west: EngineSite = exchange.sites[WEST]
        west.has_keys = False
        west.restart()
        exchange.loop().run()
        assert {error.code for error in west.errors.values()} == {"protection_refused"}
        assert {phase for phase, _ in west.errors} == {"keys", "hello", "release"}
        assert all(result.missing == {WEST: "protection_refused"} for result in exchange.results.values())


@BOTH
def test_a_round_beyond_those_that_were_approved_is_refused(tmp_path: Path, mode: str) -> None:
    with engines(tmp_path, mode=mode, rounds=Rounds(count=1, quorum=3)) as exchange:
        exchange.loop().run()
        asked = next(i for site, i in exchange.sent if site == EAST and at(i, Phase.UPLOAD, 2))
        for phase in (Phase.HELLO, Phase.UPLOAD):
            name = type(asked.message_id)(phase.value.encode().ljust(32))
            beyond = replace(asked, message_id=name, phase=phase, round_number=3)
            assert exchange.sites[EAST].answer(beyond).code == "bad_frame"


def test_the_steps_of_a_sum_cannot_be_had_twice(tmp_path: Path) -> None:
    """Under another name, so that it is not the stored reply that comes."""
    with engines(tmp_path, rounds=Rounds(count=1, quorum=3)) as exchange:
        again: list[Reply] = []

        def repeat(site: str, instruction: Instruction, reply: Reply) -> Iterable[Reply]:
            if site == EAST and instruction.phase in (Phase.UPLOAD, Phase.VOTE, Phase.REVEAL):
                name = type(instruction.message_id)(len(again).to_bytes(32, "big"))
                again.append(exchange.sites[EAST].answer(replace(instruction, message_id=name)))
            return (reply,)

        exchange.tamper = repeat
        exchange.loop().run()
        assert [(reply.code, reply.body, reply.blobs) for reply in again] == [("vote_refused", b"", ())] * 9


def test_a_vote_over_too_few_or_other_sites_is_refused_and_not_written_down(tmp_path: Path) -> None:
    with engines(tmp_path, rounds=Rounds(count=1, quorum=3)) as exchange:
        east: EngineSite = exchange.sites[EAST]
        refused: list[str] = []

        def ballots() -> list[Any]:
            return east.state.database.execute("SELECT * FROM ballots").fetchall()

        def ask_more(instruction: Instruction) -> None:
            if not at(instruction, Phase.VOTE, 1) or refused:
                return
            before = ballots()
            work = sum_work_from_bytes(instruction.body)
            for number, survivors in enumerate([(EAST, NORTH), (), (*NAMES, "zz"), NAMES[::-1], (EAST,) * 4]):
                body = sum_work_to_bytes(replace(work, survivors=survivors))
                name = type(instruction.message_id)(number.to_bytes(32, "big"))
                refused.append("")
                refused[-1] = east.answer(replace(instruction, message_id=name, body=body)).code
            body = sum_work_to_bytes(SumWork(survivors=work.survivors, digest=work.digest))
            refused.append(east.answer(replace(instruction, message_id=type(name)(b"\x0a" * 32), body=body)).code)
            assert ballots() == before

        east.before = ask_more
        exchange.loop().run()
        assert refused == ["vote_refused"] * 5 + ["bad_frame"]
        assert exchange.results[1].contributed == NAMES
        assert east.errors
        same_everywhere(exchange)


# --- the study key ---


def test_the_study_key_is_the_same_everywhere_readable_by_the_site_alone_and_unknown_to_the_server(
    tmp_path: Path,
) -> None:
    with engines(tmp_path, rounds=Rounds(count=1, quorum=3)) as exchange:
        seen: list[bytes] = []
        put = exchange.blobs.put
        exchange.blobs.put = lambda data: seen.append(data) or put(data)  # type: ignore[func-returns-value,method-assign]
        exchange.loop().run()
        (key,) = {site.study_key_path.read_bytes() for site in exchange.sites.values()}
        assert len(key) == 32
        for site in exchange.sites.values():
            assert site.study_key_path.stat().st_mode & 0o777 == 0o600
            assert site.study_key_path.parent.stat().st_mode & 0o777 == 0o700
        messages = [i.body for _, i in exchange.sent] + [reply.body for *_, reply in exchange.stored.values()]
        for data in (*seen, *exchange.blobs.content.values(), *messages):
            assert key not in data


def test_a_site_with_another_study_key_in_its_file_is_left_out_and_opens_nothing(tmp_path: Path) -> None:
    with engines(tmp_path) as exchange:
        west: EngineSite = exchange.sites[WEST]

        def swap(instruction: Instruction) -> None:
            if at(instruction, Phase.UPLOAD, 2):
                west.study_key_path.write_bytes(b"w" * 32)
                states.update(west.model_states())

        states: dict[str, bytes] = {}
        west.before = swap
        exchange.loop().run()
        assert isinstance(west.errors["upload", 2], SumRefusedError)
        assert [exchange.results[n].missing for n in (1, 2, 3)] == [{}, {WEST: "sum_refused"}, {WEST: "sum_refused"}]
        assert west.model_states() == states, "its model stayed as it was"
        assert west.study_key_path.read_bytes() == b"w" * 32, "what the server passes on does not take its place"


def test_a_study_key_file_that_is_damaged_is_made_anew_from_the_parts(tmp_path: Path) -> None:
    with engines(tmp_path) as exchange:
        west: EngineSite = exchange.sites[WEST]
        keys: list[bytes] = []

        def damage(instruction: Instruction) -> None:
            if at(instruction, Phase.UPLOAD, 2):
                keys.append(west.study_key_path.read_bytes())
                west.study_key_path.write_bytes(keys[0][:-1])

        west.before = damage
        exchange.loop().run()
        assert isinstance(west.errors["upload", 2], StudyKeyRefusedError), "who has it is not sent its parts every time"
        assert exchange.results[2].missing == {WEST: "study_key_refused"}
        assert exchange.results[3].contributed == NAMES
        assert west.study_key_path.read_bytes() == keys[0]
        same_everywhere(exchange)


def test_parts_that_were_swapped_on_the_way_give_no_key(tmp_path: Path) -> None:
    with engines(tmp_path, rounds=Rounds(count=1, quorum=3)) as exchange:
        west: EngineSite = exchange.sites[WEST]
        answer = west.answer

        def lie(instruction: Instruction) -> Reply:
            if at(instruction, Phase.HELLO, 0):
                work = sum_work_from_bytes(instruction.body)
                first, second, *rest = work.parts
                swapped = (replace(first, box=second.box), replace(second, box=first.box), *rest)
                instruction = replace(instruction, body=sum_work_to_bytes(replace(work, parts=swapped)))
            return answer(instruction)

        west.answer = lie  # type: ignore[method-assign]  # the server of this test tells it something else
        exchange.loop().run()
        assert isinstance(west.errors["hello", 0], StudyKeyRefusedError)
        assert exchange.results[1].contributed == NAMES, "with the right parts it is a site again"


# --- what leaves, beside ciphertext ---


def test_what_is_told_are_rates_of_three_digits_and_no_counts(tmp_path: Path) -> None:
    with engines(tmp_path) as exchange:
        exchange.loop().run()
        told = told_by(exchange)
        assert len(told) > 3 * len(NAMES)
        for values in told:
            assert set(values) <= RATES
            assert all(value == round(value, DIGITS) for value in values.values())
            assert all(0 <= value <= 1 for name, value in values.items() if "loss" not in name)
        sizes = {sum(len(records_of(site)[0]) for site in NAMES), *(len(records_of(site)[0]) for site in NAMES)}
        assert not sizes & {value for values in told for value in values.values()}


@BOTH
@pytest.mark.parametrize(("evaluate", "evaluated"), [("each", {1, 2, 3}), ("last", {3}), ("never", set())])
def test_the_model_is_tried_on_held_out_records_only_after_the_agreed_rounds(
    tmp_path: Path, mode: str, evaluate: Any, evaluated: set[int]
) -> None:
    with engines(tmp_path, mode=mode, rounds=Rounds(count=3, quorum=3, evaluate=evaluate)) as exchange:
        exchange.loop().run()
        assert {number for number, result in exchange.results.items() if "accuracy" in result.metrics} == evaluated
        assert all("train_loss" in result.metrics for result in exchange.results.values())
        assert all(not site.errors for site in exchange.sites.values())
        same_everywhere(exchange)


def test_rates_over_fewer_than_ten_records_are_told_to_nobody(tmp_path: Path) -> None:
    for records, is_told in ((2, False), (3, True)):  # of 2 + 3 + 4 and of 3 + 4 + 5 records
        rounds = Rounds(count=2, quorum=3)
        with engines(tmp_path / str(records), OTHERS, records, rounds=rounds) as exchange:
            exchange.loop().run()
            assert bool(told_by(exchange)) == is_told
            assert all(bool(result.metrics) == is_told for result in exchange.results.values())
            same_everywhere(exchange)


def test_rates_over_one_site_more_or_fewer_than_before_are_not_told(tmp_path: Path) -> None:
    """The difference of the rates would be those of that site."""
    with engines(tmp_path, rounds=Rounds(count=4, quorum=3)) as exchange:
        exchange.sites[WEST].is_away = lambda instruction: instruction.round_number == 2
        exchange.loop().run()
        assert exchange.results[2].contributed == OTHERS
        assert "train_loss" not in exchange.results[2].metrics, "the training of round 2"
        assert "loss" not in exchange.results[1].metrics, "the evaluation that went with it"
        assert "train_loss" in exchange.results[3].metrics


def test_one_site_that_counts_nonsense_costs_the_metrics_and_not_the_run(tmp_path: Path) -> None:
    parameters = {"trouble": "miscount", "trouble_at": WEST}
    with engines(tmp_path, rounds=Rounds(count=2, quorum=3), parameters=parameters) as exchange:
        exchange.loop().run()
        assert all(result.contributed == NAMES for result in exchange.results.values())
        assert all(set(result.metrics) == {"train_loss"} for result in exchange.results.values())
        same_everywhere(exchange)


def test_records_that_came_since_they_were_counted_do_not_raise_a_sites_weight(tmp_path: Path) -> None:
    """The weights of all sites would be more than 1, and no sum would open; a restart changes nothing about it."""
    with engines(tmp_path, rounds=Rounds(count=2, quorum=3), parameters={"trouble": "grown"}) as exchange:
        west: EngineSite = exchange.sites[WEST]
        west.before = lambda instruction: west.restart() if at(instruction, Phase.HELLO, 2) else None
        exchange.loop().run()
        assert all(result.contributed == NAMES for result in exchange.results.values())
        assert exchange.progress.attempt == 0
        same_everywhere(exchange)


def test_no_secret_is_ever_logged(tmp_path: Path) -> None:
    with capture_logs() as logs, engines(tmp_path, protection=Protection(value_bound=0.01)) as exchange:
        west: EngineSite = exchange.sites[WEST]
        west.before = lambda instruction: west.restart() if at(instruction, Phase.UPLOAD, 2) else None
        exchange.loop().run()
        secrets = [SEED_BYTES, SECRET.encode(), west.study_key_path.read_bytes()]
        for site in exchange.sites.values():
            secrets += [site.keys.signing.private_bytes_raw(), site.keys.sealing.private_bytes_raw()]
        numbers = [str(int.from_bytes(SEED_BYTES, "big") >> 1)]
        numbers += [f"{value:.6f}" for site in NAMES for value in records_of(site)[0][:3].ravel()]
        numbers += [f"{value:.6f}" for value in west.weights()]
    text = repr(logs)
    assert {"update clipped", "round summed", "site refused"} <= {log["event"] for log in logs}
    for secret in secrets:
        for form in (secret.hex(), repr(secret)[2:-1], base64.b64encode(secret).decode(), repr(list(secret))):
            assert form not in text
    assert not [number for number in numbers if number in text]


def test_the_server_hears_no_count_of_a_single_site_in_the_clear(tmp_path: Path) -> None:
    """Masked with fresh pads: two runs on the same records have no word in common."""
    masked = []
    for number in range(2):
        with engines(tmp_path / str(number), rounds=Rounds(count=1, quorum=3)) as exchange:
            exchange.loop().run()
            uploads = [reply for s, i, reply in exchange.stored.values() if s == EAST and i.phase is Phase.UPLOAD]
            counts = [words.unpack_words(sum_answer_from_bytes(reply.body).counts) for reply in uploads]
            masked.append(set(np.concatenate(counts).tolist()))
    assert len(masked[0]) > 500
    assert not masked[0] & masked[1]
    assert min(masked[0]) > 10**6


@pytest.mark.parametrize("records", [40, 400])
@BOTH
def test_a_site_that_was_not_there_when_records_were_counted_takes_part_in_the_rounds(
    tmp_path: Path, mode: str, records: int
) -> None:
    """Its records are in no total. The weights of all sites are at most 1 all the same, or no sum would open."""
    with engines(tmp_path, mode=mode, rounds=Rounds(count=2, quorum=3)) as exchange:
        west: EngineSite = exchange.sites[WEST]
        west.agreement = an_agreement(exchange.study, west.folder, WEST, records)
        west.is_away = lambda instruction: instruction.round_number == 0
        exchange.loop().run()
        assert not west.errors
        assert all(result.contributed == NAMES for result in exchange.results.values())
        assert exchange.progress.attempt == 0
        same_everywhere(exchange)


@pytest.mark.parametrize("mode", ["none", "secagg"])
def test_a_site_that_may_not_train_evaluates_nothing_in_vain(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation in the same sum was paid for again in each round, and told to nobody."""
    evaluated: list[int] = []
    evaluate = Evaluator.evaluate

    async def noted(evaluator: Evaluator, *arguments: Any) -> tuple[int, ...]:
        evaluated.append(arguments[2])
        return await evaluate(evaluator, *arguments)

    async def refuse(trainer: Trainer, task: Any, instruction: Instruction, agreement: Any) -> None:
        if instruction.round_number == 2:
            raise BudgetExhaustedError("The budget is used up")

    monkeypatch.setattr(Evaluator, "evaluate", noted)
    monkeypatch.setattr(Trainer, "foresee", refuse)
    with engines(tmp_path, mode=mode, rounds=Rounds(count=2, quorum=3)) as exchange, pytest.raises(QuorumMissingError):
        exchange.loop().run()
    assert set(evaluated) == {0}
