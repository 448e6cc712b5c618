"""Secure aggregation with real processes: what the server holds, and who may die when without costing more than a part.

Four sites, of which one may collude: a sum needs three uploads, three votes and two reveals. A frozen site (SIGSTOP)
holds an exchange open: the server of these tests takes a minute to notice, but sees at once that a killed one is gone.
"""

from __future__ import annotations

import io
import json
import re
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing

import numpy as np
import pytest

from quorate.aggregation import ring, words
from quorate.aggregation.packing import Packing
from quorate.aggregation.plain import PlainScheme
from quorate.aggregation.weights import record_weight
from quorate.errors import KeyMismatchError, QuorateError
from quorate.identity import RunId
from quorate.secagg.release import ReleaseTerms, pack_release, seal_release
from quorate.secagg.study_key import StudyKey
from quorate.wire.sum_messages import SumAnswer, sum_answer_to_bytes
from quorate_client.rounds.model.state import THETA_OFFSET
from tests.consortium.running import Site
from tests.integration.crash_kit import DIMENSION, SECRET, CrashTest, Template, shares_in

pytestmark = pytest.mark.integration

ALL = set(SECRET.sites)
OTHERS = ALL - {"east"}
BOUND = 4.0
WAL_HEADER_BYTES, WAL_FRAME_HEADER_BYTES = 32, 24
"""Of SQLite's write-ahead log; the page size is in its header (sqlite.org/fileformat2.html, section 4)."""


@pytest.fixture(scope="module")
def founded(secret_template: Template) -> Template:
    return secret_template


def run_to_upload(consortium: CrashTest, study: str, step: str = "train-2", **held: str) -> str:
    """A run in which all have uploaded but west, which is held in a step of its second round, or right before."""
    run = consortium.run(study, west=step, **held)
    consortium.sites["west"].await_step(step)
    consortium.await_phase(run, "upload", "east", "north", "south")
    return run


def run_to_vote(consortium: CrashTest, study: str, *frozen: str) -> str:
    """A run whose second round is in the vote; all have voted but the ``frozen``, whose daemons stand still."""
    run = run_to_upload(consortium, study)
    for name in frozen:
        consortium.sites[name].running.freeze()
    consortium.sites["west"].release("train-2")
    consortium.await_phase(run, "vote", *(ALL - set(frozen)))
    return run


def run_to_reveal(consortium: CrashTest, study: str) -> str:
    """A run whose second round is in the reveal; all but east have revealed, whose daemon stands still."""
    run = run_to_vote(consortium, study, "south")
    consortium.sites["east"].running.freeze()
    consortium.sites["south"].running.thaw()
    consortium.await_phase(run, "reveal", "north", "south", "west")
    return run


def state_names(site: Site, run: str) -> set[str]:
    """The model states of a run that a site holds, by round and digest."""
    return {path.name for path in (site.folder / "work" / "runs" / run).glob("model-*.state")}


def ballots(site: Site, run: str) -> list[tuple[int, tuple[str, ...], bytes]]:
    """What a site voted for: round, survivors, digest."""
    with closing(sqlite3.connect(f"file:{site.folder / 'state.sqlite'}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT round, members, digest FROM ballots JOIN survivors ON id = survivors WHERE run = ?", (run,)
        ).fetchall()
    return [(number, tuple(name for name, _ in json.loads(members)), digest) for number, members, digest in rows]


# --- what the server holds ---


def spellings(number: int) -> list[re.Pattern[bytes]]:
    """A number as text, and as an integer or a float of 8 bytes in either order."""
    text = re.compile(rb"(?<![0-9A-Za-z.])%d(?![0-9A-Za-z])" % number)
    packed = [struct.pack(form, number) for form in ("<q", ">q", "<d", ">d")]
    return [text, *(re.compile(re.escape(form)) for form in packed)]


def samples(content: bytes) -> list[re.Pattern[bytes]]:
    """Pieces from all over, long enough not to be met by chance. The first bytes are the same for everybody."""
    pieces = [content[at : at + 48] for at in range(64, len(content) - 48, len(content) // 16)]
    return [re.compile(re.escape(piece)) for piece in pieces if len(set(piece)) > 8]


def canaries(consortium: CrashTest, run: str) -> Mapping[str, list[re.Pattern[bytes]]]:
    """What nobody but the sites may hold, of each of them: its numbers, its update of round 2, its models, its keys."""
    found: dict[str, list[re.Pattern[bytes]]] = {}
    packing, total = Packing(BOUND, len(ALL)), sum(SECRET.records.values())
    for name, site in consortium.sites.items():
        records = SECRET.records[name]
        weight = record_weight(records, total, len(ALL), 0, is_counted=True)
        said = sum_answer_to_bytes(SumAnswer(dimension=DIMENSION, plain_counts=(records,)))
        found[f"records of {name}"] = [*spellings(records), re.compile(re.escape(said))]
        found[f"weight of {name}"] = spellings(weight)
        for path in site.folder.glob(f"work/runs/{run}/model-*.state"):
            found[f"{path.name} of {name}"] = samples(path.read_bytes()[THETA_OFFSET:])
        key = site.folder / "keys" / "studies" / f"{run}.key"
        if key.exists():
            found[f"study key of {name}"] = [re.compile(re.escape(key.read_bytes()))]
        kept = site.control / "update-2"
        if kept.exists():
            update = np.fromfile(kept, np.float32)
            coefficients = packing.encode(update, weight)[0]
            residues = (coefficients % ring.MODULUS).astype(np.uint64)
            found[f"update of {name}"] = samples(update.tobytes())
            found[f"plain words of {name}"] = samples(
                PlainScheme(BOUND, len(ALL)).encode(update, weight)[0].astype("<u4").tobytes()
            )
            found[f"bare coefficients of {name}"] = samples(coefficients.tobytes()) + samples(words.pack(residues))
    return found


def written(consortium: CrashTest) -> Iterator[bytes]:
    """The content of every file of the server."""
    for path in [*consortium.server_dir.rglob("*"), consortium.root / "server.log"]:
        if path.name.endswith("-shm"):
            continue  # where to find what in the log beside it
        try:
            content = path.read_bytes()
        except (IsADirectoryError, FileNotFoundError):  # the spool is tidied meanwhile
            continue
        if path.name.endswith("-wal"):
            # A checksum stands before each page. Where the page is empty, two bytes of it make a small integer.
            start, frame = WAL_HEADER_BYTES, WAL_FRAME_HEADER_BYTES + int.from_bytes(content[8:12])
            yield from (content[at + WAL_FRAME_HEADER_BYTES : at + frame] for at in range(start, len(content), frame))
        else:
            yield content


def told(consortium: CrashTest, run: str) -> list[bytes]:
    """Everything that the server has written, and what it reports."""
    return [*(b"".join(consortium.operator.report(run, form)) for form in ("json", "html")), *written(consortium)]


def seen(contents: Iterable[bytes], sought: Mapping[str, list[re.Pattern[bytes]]]) -> set[str]:
    contents = list(contents)
    return {
        name for name, forms in sought.items() if any(form.search(content) for form in forms for content in contents)
    }


def hold_round_2(consortium: CrashTest, study: str, last: str) -> str:
    """A run in which all have sent their update of round 2, but west."""
    for site in consortium.sites.values():
        site.order("keep")
    run = consortium.run(study, west="train-2")
    consortium.sites["west"].await_step("train-2")
    consortium.await_phase(run, last, "east", "north", "south")
    return run


def test_an_undisturbed_run_tells_the_server_nothing_of_a_site(fresh: CrashTest) -> None:
    """Each round has all sites, the model is exact at all of them and not at the server, and nowhere in the server's
    folder, log and reports is a site's count, weight, update, model or key; neither during the run nor afterwards.
    """
    run = hold_round_2(fresh, "kept", "upload")
    during = canaries(fresh, run)
    assert {f"{what} of {name}" for what in ("study key", "records") for name in ALL} <= set(during)
    assert {f"update of {name}" for name in ("east", "north", "south")} <= set(during)
    assert len([name for name in during if name.startswith("model-1")]) == len(ALL)
    assert seen(told(fresh, run), during) == set()
    # The search itself finds what is there.
    control = fresh.sites["east"].control
    assert seen([(control / "update-2").read_bytes()], during) == {"update of east"}
    fresh.sites["north"].order("export-3")
    fresh.sites["west"].release("train-2")
    fresh.sites["north"].await_step("export-3")
    after = canaries(fresh, run)
    assert {f"update of {name}" for name in ALL} <= set(after)
    assert len([name for name in after if name.startswith("model-3")]) == len(ALL)
    fresh.sites["north"].release("export-3")
    view = fresh.await_end(run)

    assert [set(result.contributed) for result in view.results] == [ALL, ALL, ALL]
    assert [dict(result.missing) for result in view.results] == [{}, {}, {}]
    for site in fresh.sites.values():
        assert [site.began(f"train-{number}") for number in (1, 2, 3, 4)] == [1, 1, 1, 0]
    models = fresh.models(run)
    assert len({path.read_bytes() for path in models}) == 1
    np.testing.assert_allclose(shares_in(models[0]), fresh.expected(view), atol=SECRET.tolerance, rtol=0)
    assert not view.model_available
    with pytest.raises(QuorateError):
        fresh.released(run)
    assert fresh.spooled() == []
    contents = told(fresh, run)
    assert fresh.running.stop() == 0
    contents += written(fresh)
    assert not list(fresh.server_dir.rglob("*.npz"))
    assert seen(contents, {**during, **after}) == set()


def test_the_same_search_finds_it_all_where_nothing_is_protected(fresh: CrashTest) -> None:
    """What makes the test above one: in an open study the server's folder is full of it."""
    run = hold_round_2(fresh, "open", "upload")
    found = seen(told(fresh, run), canaries(fresh, run))
    assert {f"plain words of {name}" for name in ("east", "north", "south")} <= found
    assert {f"records of {name}" for name in ALL} <= found
    fresh.sites["west"].release("train-2")
    fresh.require_whole(run, ALL, ALL, ALL)


def test_a_model_that_goes_to_the_operator_is_nowhere_at_the_server_and_cannot_be_replaced_there(
    fresh: CrashTest,
) -> None:
    """What lies at the server opens with the operator's key only, to what every site has; and only that is believed."""
    run = fresh.run("brisk")
    fresh.require_whole(run, ALL, ALL, ALL)
    fetched = (fresh.root / "model.npz").read_bytes()
    assert {path.read_bytes() for path in fresh.models(run)} == {fetched}
    sought = {**canaries(fresh, run), "the model": samples(fetched)}
    assert seen(told(fresh, run), sought) == set()
    assert "the model" in seen([fetched], sought)
    key = StudyKey(b"of the server's own making......")
    backdoor = seal_release(io.BytesIO(fetched[::-1]), key, ReleaseTerms.of(fresh.study(run), RunId(run)))
    (fresh.folder(run) / "model.npz").write_bytes(b"".join(pack_release([], backdoor)))
    with pytest.raises(KeyMismatchError):
        fresh.released(run)
    assert (fresh.root / "model.npz").read_bytes() == fetched


# --- a site ---


def test_a_site_that_dies_between_hello_and_upload_is_missed_for_that_round_only(consortium: CrashTest) -> None:
    """It said hello with its last reveal; the key for it died with the process."""
    east, north = consortium.sites["east"], consortium.sites["north"]
    run = consortium.run("brisk", east="initial-2", north="train-1")
    east.await_step("initial-2")
    north.await_step("train-1")
    east.running.kill()
    east.release("initial-2")
    consortium.restart("east")
    north.release("train-1")
    view = consortium.require_whole(run, OTHERS, ALL, ALL)
    assert dict(view.results[0].missing) == {"east": "site_interrupted"}
    assert east.began("train-1") == 0


def test_a_site_that_dies_while_it_trains_is_missed_for_that_round_only(consortium: CrashTest) -> None:
    east, north = consortium.sites["east"], consortium.sites["north"]
    run = consortium.run("brisk", east="train-2", north="train-2")
    east.await_step("train-2")
    consortium.await_phase(run, "upload", "south", "west")
    east.running.kill()
    east.release("train-2")
    consortium.restart("east")
    north.release("train-2")
    view = consortium.require_whole(run, ALL, OTHERS, ALL)
    assert dict(view.results[1].missing) == {"east": "site_interrupted"}
    assert east.began("train-2") == 1


def test_what_a_site_uploaded_before_it_died_counts(consortium: CrashTest) -> None:
    """The others hold shares of its key: its update is in the sum, though it neither votes nor reveals."""
    east, north = consortium.sites["east"], consortium.sites["north"]
    run = consortium.run("brisk", north=("train-1", "train-2"))
    north.await_step("train-1")
    consortium.await_phase(run, "upload", "east", "south", "west")
    east.running.kill()
    north.release("train-1")
    north.await_step("train-2")
    consortium.restart("east")
    north.release("train-2")
    view = consortium.require_whole(run, ALL, OTHERS, ALL)
    assert [dict(result.missing) for result in view.results[:2]] == [{}, {"east": "absent"}]


def test_a_site_that_dies_between_vote_and_reveal_costs_nothing(consortium: CrashTest) -> None:
    """Two others reveal. Started again it has lost its share, says so, and is in the next round."""
    run = run_to_vote(consortium, "brisk", "south")
    consortium.sites["east"].running.kill()
    consortium.restart("east")
    consortium.sites["south"].running.thaw()
    consortium.require_whole(run, ALL, ALL, ALL)
    assert "vote_refused" in consortium.sites["east"].log


def test_a_site_that_is_frozen_in_its_reveal_costs_nothing(consortium: CrashTest) -> None:
    """Nobody knows that it would come back: it is killed while it stands still."""
    north = consortium.sites["north"]
    run = run_to_reveal(consortium, "brisk")
    north.order("train-3")
    consortium.sites["east"].running.kill()
    north.await_step("train-3")
    consortium.restart("east")
    north.release("train-3")
    consortium.require_whole(run, ALL, ALL, OTHERS)


@pytest.mark.parametrize(
    ("study", "back_in", "rounds"),
    [("brisk", "train-2", [OTHERS, OTHERS, ALL]), ("thrifty", "train-3", [OTHERS, OTHERS, OTHERS])],
    ids=["by the sums", "by a checkpoint"],
)
def test_a_site_that_missed_rounds_arrives_at_the_same_model(
    consortium: CrashTest, study: str, back_in: str, rounds: list[set[str]]
) -> None:
    """It opens what it was not part of: the sums, or where the server dropped them a checkpoint that another site
    sealed. Its upload is in the others' sum only if its model is theirs.
    """
    east, north = consortium.sites["east"], consortium.sites["north"]
    run = consortium.run(study, east="train-1", north=(back_in, "export-3"))
    east.await_step("train-1")
    consortium.await_phase(run, "upload", "south", "west")
    east.running.kill()
    east.release("train-1")
    north.await_step(back_in)
    consortium.restart("east")
    north.release(back_in)
    north.await_step("export-3")
    consortium.await_phase(run, "release", "east", "south", "west")
    states = {name: state_names(site, run) for name, site in consortium.sites.items()}
    newest = {name for name in states["north"] if name.startswith("model-3-")}
    assert len(newest) == 1
    assert all(newest <= held for held in states.values())
    north.release("export-3")
    consortium.require_whole(run, *rounds)
    assert len({path.read_bytes() for path in consortium.models(run)}) == 1


def test_a_site_that_was_not_there_when_the_run_began_joins_it(found: Callable[..., CrashTest]) -> None:
    """It finds its part of the study key, and the sum of the statistics that it is not in."""
    consortium = found()
    consortium.start("east")
    run = consortium.run("brisk", north="train-1")
    consortium.sites["north"].await_step("train-1")
    consortium.restart("east")
    consortium.sites["north"].release("train-1")
    consortium.require_whole(run, OTHERS, ALL, ALL)


# --- a sum that cannot be opened ---


def require_few_votes(consortium: CrashTest, run: str, round_number: int, *voters: str) -> None:
    """These sites voted twice in a round, over the same sites; the others once."""
    for name, site in consortium.sites.items():
        given = [ballot for ballot in ballots(site, run) if ballot[0] == round_number]
        assert len(given) == (2 if name in voters else 1), name
        assert {survivors for _, survivors, _ in given} == {tuple(sorted(ALL))}
        assert len({digest for *_, digest in given}) == len(given)


def test_a_sum_that_lost_its_voters_is_begun_anew_once_they_are_back(consortium: CrashTest) -> None:
    """All train anew, under new keys; the first sum is never opened, and nobody counts twice."""
    west = consortium.sites["west"]
    run = run_to_vote(consortium, "brisk", "north", "south")
    for name in ("north", "south"):
        consortium.sites[name].running.kill()
        consortium.start_site(name)
    west.order("train-3")
    west.await_step("train-3")
    require_few_votes(consortium, run, 2, "east", "west")
    west.release("train-3")
    consortium.require_shares(run, ALL, ALL, ALL)
    for site in consortium.sites.values():
        assert [site.began(f"train-{number}") for number in (1, 2, 3)] == [1, 2, 1]


def test_a_run_whose_voters_stay_away_pauses_after_one_more_attempt(consortium: CrashTest) -> None:
    """Paused with ``quorum_missing``; with the sites back ``resume`` completes it."""
    run = run_to_vote(consortium, "hasty", "north", "south")
    for name in ("north", "south"):
        consortium.sites[name].running.kill()
    paused = consortium.await_pause(run, "quorum_missing", "north (absent), south (absent)", "run resume")
    assert paused.results == ()
    assert consortium.worker_log(run).count("a sum is begun anew") == 1
    consortium.restart("north", "south")
    consortium.resume(run)
    consortium.require_shares(run, ALL, ALL)
    for site in consortium.sites.values():
        assert [site.began(f"train-{number}") for number in (1, 2)] == [1, 2]


def test_an_operators_pause_in_an_upload_loses_no_round(consortium: CrashTest) -> None:
    """What was withdrawn is not taken up again: the sum is begun anew when the run goes on."""
    run = run_to_upload(consortium, "brisk")
    consortium.operator.pause(run)
    consortium.sites["west"].release("train-2")
    consortium.resume(run)
    view = consortium.require_shares(run)
    assert all(OTHERS & set(result.contributed) for result in view.results)


# --- the server ---


def let_go(consortium: CrashTest) -> None:
    """Whoever was held to bring a run to where it is."""
    for site in consortium.sites.values():
        site.running.thaw()
        for step in ("initial-2", "train-2"):
            (site.control / step).unlink(missing_ok=True)


PLACES: dict[str, Callable[[CrashTest], str]] = {
    # All said hello with the reveal of the sum before; one has not trained yet.
    "before training": lambda consortium: run_to_upload(consortium, "patient", "initial-2"),
    "in the upload": lambda consortium: run_to_upload(consortium, "patient"),
    "in the vote": lambda consortium: run_to_vote(consortium, "patient", "south"),
    "in the reveal": lambda consortium: run_to_reveal(consortium, "patient"),
}


@pytest.mark.parametrize("killed", ["server", "worker"])
@pytest.mark.parametrize("reach", PLACES.values(), ids=PLACES)
def test_a_run_goes_on_by_itself_when_the_server_or_its_worker_was_killed(
    consortium: CrashTest, reach: Callable[[CrashTest], str], killed: str
) -> None:
    """What sites did meanwhile counts, once; nobody trains or votes again for the same sum."""
    run = reach(consortium)
    if killed == "server":
        consortium.running.kill()
        let_go(consortium)
        consortium.start_server()
    else:
        consortium.kill_run_worker()
        let_go(consortium)
    consortium.require_whole(run, ALL, ALL, ALL)
    for site in consortium.sites.values():
        assert [site.began(f"train-{number}") for number in (1, 2, 3)] == [1, 1, 1]
        rounds = Counter(number for number, *_ in ballots(site, run))
        assert max(rounds.values()) == 1


def test_a_worker_that_dies_does_not_let_a_site_into_a_sum_that_began_without_it(consortium: CrashTest) -> None:
    """Its successor goes through the closed hello again with the site back: a sum of other hellos would not open."""
    east, north = consortium.sites["east"], consortium.sites["north"]
    run = run_to_reveal(consortium, "brisk")
    north.order("train-3")
    east.running.kill()
    north.await_step("train-3")
    consortium.await_phase(run, "upload", "south", "west")
    consortium.restart("east")
    consortium.kill_run_worker()
    north.release("train-3")
    view = consortium.require_whole(run, ALL, ALL, OTHERS)
    assert dict(view.results[2].missing) == {"east": "work_withdrawn"}
    assert [north.began(f"train-{number}") for number in (1, 2, 3)] == [1, 1, 1]
    assert "Traceback" not in east.log
