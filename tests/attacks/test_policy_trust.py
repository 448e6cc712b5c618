"""What a site allows is decided by its administrator's file or by nobody: it does not fail open."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from quorate.errors import ConfigError, LedgerError, PolicyError
from quorate.rounds.instruction import Phase
from quorate_client.approval.policy import Policy
from quorate_client.approval.policy_file import has_policy, policy_now, read_policy, write_default_policy
from quorate_client.ledger.ledger import open_ledger
from quorate_client.site.database import alone, make_state, site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import make_or_load_keys
from quorate_client.site.trusted_file import read_trusted
from tests.client.command_kit import Run, runner
from tests.client.conftest import POLICY, Talk, make_study
from tests.client.consortium import Server
from tests.client.engine_processes import end_engines
from tests.client.flower.test_engine_process import Place
from tests.client.ledger_kit import ACCOUNTANTS, KEY, Clock, opened
from tests.client.rounds.test_training import Site, study

LOOSE = 'protection = ["none", "secagg"]\nminimum_sites = 1\n'
STRICT = 'protection = ["secagg"]\nminimum_sites = 9\n'
POLICY_OF_NONE = 'protection = ["none"]\nevaluation_without_protection = true\nminimum_sites = 3\ntasks = ["linear"]\n'
ANOTHER = 65_534
OURS = frozenset({0, os.geteuid()})

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="NOT CHECKED HERE: only root can make a file of another user; run these tests as root too"
)


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    """A site with keys, whose policy was never looked at."""
    made = SiteFolder(tmp_path / "site")
    made.create()
    make_or_load_keys(made.keys)
    make_state(made.database)
    return made


def refused(folder: SiteFolder, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_policy(folder)
    with pytest.raises(PolicyError, match="nothing is allowed"):
        policy_now(folder)


def write(path: Path, text: str = LOOSE, mode: int = 0o644) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


# --- a policy that is gone ---


def test_a_site_that_never_had_a_policy_has_the_defaults(folder: SiteFolder) -> None:
    assert read_policy(folder) == Policy()
    assert not has_policy(folder)


def test_a_policy_that_is_taken_away_does_not_become_the_defaults(folder: SiteFolder) -> None:
    write(folder.policy, STRICT)
    assert policy_now(folder).minimum_sites == 9
    folder.policy.unlink()
    refused(folder, "is gone: this site had a policy")
    write(folder.policy, STRICT)
    assert policy_now(folder).minimum_sites == 9


def test_the_way_back_to_the_defaults_is_an_empty_file(folder: SiteFolder) -> None:
    write(folder.policy, STRICT)
    read_policy(folder)
    write(folder.policy, "")
    assert read_policy(folder) == Policy()


def test_a_policy_that_could_not_be_trusted_is_not_remembered(folder: SiteFolder) -> None:
    """Whoever can put a file there could else stop the site by taking it away again."""
    write(folder.policy, STRICT, 0o666)
    refused(folder, "written by more users")
    folder.policy.unlink()
    assert read_policy(folder) == Policy()


def test_a_database_that_takes_the_place_of_one_learns_of_the_policy_too(folder: SiteFolder) -> None:
    """Put there while a daemon, which looked at the policy before, has the other one open."""
    write(folder.policy, STRICT)
    with site_state(folder.database):
        for _ in range(2):
            policy_now(folder)
        folder.database.rename(folder.root / "aside")
        make_state(folder.database)
        policy_now(folder)
        folder.policy.unlink()
        refused(folder, "is gone: this site had a policy")


def test_a_policy_that_is_remembered_is_read_while_another_writes(folder: SiteFolder) -> None:
    write(folder.policy, STRICT)
    with site_state(folder.database) as state:
        policy_now(folder)
        with alone(state.database):
            assert policy_now(folder).minimum_sites == 9
            write(folder.policy, LOOSE)
            assert policy_now(folder).minimum_sites == 1


def test_joining_again_does_not_put_the_defaults_in_the_place_of_a_policy_that_is_gone(folder: SiteFolder) -> None:
    write_default_policy(folder)
    folder.policy.unlink()
    write_default_policy(folder)
    refused(folder, "is gone")


def test_the_policy_that_joining_writes_is_its_owners_alone_whatever_the_mask(folder: SiteFolder) -> None:
    before = os.umask(0o000)
    try:
        write_default_policy(folder)
    finally:
        os.umask(before)
    assert folder.policy.stat().st_mode & 0o777 == 0o644
    assert read_policy(folder) == Policy()


async def test_a_daemon_whose_policy_is_taken_away_works_no_more(talk: Talk) -> None:
    assert (await talk.ask(1)).code == ""
    talk.folder.policy.unlink()
    assert (await talk.ask(2)).code == "policy_refused"
    talk.folder.policy.symlink_to("nowhere")
    assert (await talk.ask(3)).code == "policy_refused"
    assert len(talk.engine.performed) == 1


def test_where_flowers_daemons_run_a_policy_that_is_taken_away_is_missed_too(installed: Path, tmp_path: Path) -> None:
    """There the site file is the agreement, and no policy is needed: but one that was there counts."""
    place = Place(tmp_path)
    try:
        assert place.ask(Phase.UPLOAD).code == ""
        write(place.folders["north"].policy, STRICT)
        assert place.ask(Phase.UPLOAD).code == "protection_refused"
        write(place.folders["north"].policy, POLICY_OF_NONE)
        assert place.ask(Phase.UPLOAD).code == ""
        place.folders["north"].policy.unlink()
        assert place.ask(Phase.UPLOAD).code == "policy_refused"
    finally:
        end_engines(tmp_path)


# --- a policy of somebody else ---


@as_root
def test_a_policy_that_belongs_to_another_user_allows_nothing(folder: SiteFolder) -> None:
    write(folder.policy)
    os.chown(folder.policy, ANOTHER, ANOTHER)
    refused(folder, "belongs to a user who must not decide")
    os.chown(folder.policy, 0, 0)
    assert policy_now(folder).minimum_sites == 1


@as_root
def test_the_owner_of_the_sites_keys_may_decide_also_where_root_asks(folder: SiteFolder) -> None:
    write(folder.policy)
    for path in (folder.root, folder.keys, *folder.keys.iterdir(), folder.policy):
        os.chown(path, ANOTHER, ANOTHER)
    assert policy_now(folder).minimum_sites == 1
    os.chown(folder.policy, ANOTHER - 1, ANOTHER)
    refused(folder, f"user id {ANOTHER - 1}")


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_policy_that_others_may_write_allows_nothing(folder: SiteFolder, mode: int) -> None:
    write(folder.policy, mode=mode)
    refused(folder, "written by more users than its owner")
    folder.policy.chmod(0o644)
    assert policy_now(folder).protection == {"none", "secagg"}


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
@pytest.mark.parametrize("which", ["its folder", "a folder above"])
def test_a_policy_in_whose_place_others_may_put_another_allows_nothing(
    folder: SiteFolder, which: str, mode: int
) -> None:
    open_to_others = folder.root if which == "its folder" else folder.root.parent
    write(folder.policy)
    before = open_to_others.stat().st_mode
    open_to_others.chmod(mode)
    refused(folder, "more users than its owner may write: they can put another file")
    open_to_others.chmod(before)
    assert policy_now(folder).minimum_sites == 1


@as_root
def test_a_policy_below_a_folder_of_another_user_allows_nothing(folder: SiteFolder) -> None:
    write(folder.policy)
    os.chown(folder.root.parent, ANOTHER, ANOTHER)
    try:
        refused(folder, f"user id {ANOTHER}")
    finally:
        os.chown(folder.root.parent, 0, 0)


def test_a_folder_of_ours_among_everybodys_is_good(folder: SiteFolder, tmp_path: Path) -> None:
    """As /tmp is: everybody may put things there, and nobody may take away another's."""
    write(folder.policy)
    tmp_path.chmod(0o1777)
    assert policy_now(folder).minimum_sites == 1


@as_root
def test_what_another_put_among_everybodys_is_not(folder: SiteFolder) -> None:
    folder.root.chmod(0o1777)
    write(folder.policy)
    assert policy_now(folder).minimum_sites == 1
    write(folder.root / "mine")
    folder.policy.unlink()
    folder.policy.symlink_to("mine")
    os.chown(folder.policy, ANOTHER, ANOTHER, follow_symlinks=False)
    refused(folder, f"user id {ANOTHER}")


@as_root
def test_who_exchanges_the_whole_folder_does_not_become_its_administrator(folder: SiteFolder) -> None:
    """Another user's folder in the site's place, with links to its real keys and databases, and a policy of theirs."""
    real = folder.root.rename(folder.root.with_name("real"))
    folder.root.mkdir()
    (folder.root / "keys").symlink_to(real / "keys")
    write(folder.policy)
    for path in (folder.root, folder.policy):
        os.chown(path, ANOTHER, ANOTHER)
    refused(folder, f"user id {ANOTHER}")
    folder.keys.unlink()
    folder.keys.mkdir()
    (folder.keys / "signing.pem").symlink_to(real / "keys" / "signing.pem")
    for path in (folder.keys, folder.keys / "signing.pem"):
        os.chown(path, ANOTHER, ANOTHER, follow_symlinks=False)
    refused(folder, f"user id {ANOTHER}")


# --- links ---


def test_a_link_is_followed_to_where_only_its_owners_may_write(folder: SiteFolder, tmp_path: Path) -> None:
    kept = write(tmp_path / "etc" / "site-policy.toml")
    for target in (kept, Path("../etc/site-policy.toml"), Path("..") / "by" / "site-policy.toml"):
        (tmp_path / "by").unlink(missing_ok=True)
        (tmp_path / "by").symlink_to("etc")
        folder.policy.unlink(missing_ok=True)
        folder.policy.symlink_to(target)
        assert policy_now(folder).minimum_sites == 1
    (tmp_path / "etc").chmod(0o777)
    refused(folder, "more users than its owner may write")
    (tmp_path / "etc").chmod(0o755)
    kept.chmod(0o666)
    refused(folder, "written by more users")


@pytest.mark.parametrize("how", ["nowhere", "to itself", "in a circle"])
def test_a_link_that_leads_nowhere_allows_nothing(folder: SiteFolder, how: str) -> None:
    match how:
        case "nowhere":
            folder.policy.symlink_to("elsewhere.toml")
        case "to itself":
            folder.policy.symlink_to(folder.policy)
        case _:
            folder.policy.symlink_to("round.toml")
            (folder.root / "round.toml").symlink_to(folder.policy)
    refused(folder, "Cannot read|leads nowhere")


# --- what is no file, and races ---


def test_a_policy_that_is_no_file_allows_nothing(folder: SiteFolder) -> None:
    folder.policy.mkdir()
    refused(folder, "Is a directory|is no file")
    folder.policy.rmdir()
    os.mkfifo(folder.policy, 0o600)  # must not be waited for either
    refused(folder, "is no file")


@pytest.mark.parametrize("bad_because", ["others may write it", pytest.param("it is another's", marks=as_root)])
def test_what_was_looked_at_is_what_is_read(tmp_path: Path, bad_because: str) -> None:
    """Somebody exchanges the file at the very moment at which it is opened, or once it is open."""
    good, bad = write(tmp_path / "good", STRICT), write(tmp_path / "bad", LOOSE)
    if bad_because == "it is another's":
        os.chown(bad, ANOTHER, ANOTHER)
    else:
        bad.chmod(0o666)
    path, exchanged = tmp_path / "policy.toml", [False, False]

    def exchange(event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or all(exchanged):
            return
        is_open = isinstance(arguments[0], int)  # the descriptor becomes a file
        if not exchanged[is_open] and (is_open or str(arguments[0]) == str(path)):
            exchanged[is_open] = True
            path.unlink()
            path.hardlink_to(bad)

    path.hardlink_to(good)
    exchanged[True] = True
    sys.addaudithook(exchange)  # for ever, but it does nothing once it has exchanged both
    with pytest.raises(ConfigError, match=r"written by more users|must not decide"):
        read_trusted(path, OURS)
    assert exchanged == [True, True]
    path.unlink()
    path.hardlink_to(good)
    exchanged[True] = False
    assert read_trusted(path, OURS) == STRICT
    assert path.read_text() == LOOSE


# --- limits ---


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[Site]:
    make_state(tmp_path / "state.sqlite")
    with closing(open_ledger(tmp_path / "ledger.sqlite", tmp_path / "state.sqlite", KEY, ACCOUNTANTS)) as ledger:
        yield Site(tmp_path, ledger)


def test_a_loosening_is_on_the_ledger_before_anything_is_computed_under_it(trained: Site) -> None:
    """Loosened, used, and tightened again: the entry stays."""
    private = study(training={"clip": 1.0, "batch_size": 40, "steps": 5, "epsilon": 3.0})
    for number, limit in enumerate((9.0, 90.0, 9.0), 1):
        trained.policy = trained.policy.model_copy(update={"epsilon_ever": limit})
        trained.train(private, number)
    trained.train(private, 4)
    told = [(entry.limits["epsilon_ever"], entry.number) for entry in trained.ledger.entries.sums().limits]
    assert told == [(9.0, 1), (90.0, 5), (9.0, 8)]
    trained.policy = trained.policy.model_copy(update={"epsilon_ever": None})
    trained.train(study())  # releases what no epsilon bounds, which a limit forbids
    newest = trained.ledger.entries.sums().limits[-1]
    assert (newest.limits["epsilon_ever"], newest.loosened({"epsilon_ever": 9.0})) == (None, ["epsilon_ever"])
    trained.ledger.entries.verify()


def test_nothing_is_computed_where_the_limits_cannot_be_written_down(trained: Site) -> None:
    trained.policy = trained.policy.model_copy(update={"epsilon_ever": 9.0})
    trained.ledger.entries.file.database.execute("DROP TABLE entries")
    with pytest.raises(LedgerError):
        trained.train(study())
    assert trained.task.asked == []


def test_a_site_without_limits_has_no_entry_of_them(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.note_limits({"epsilon_ever": None})
        assert ledger.entries.all() == []
        ledger.note_limits({"epsilon_ever": 2.0})
        ledger.note_limits({"epsilon_ever": 2.0})
        assert [entry.limits for entry in ledger.entries.sums().limits] == [{"epsilon_ever": 2.0}]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, joined: SiteFolder) -> Run:
    return runner(capsys, monkeypatch, joined)


def test_the_ledger_shows_that_a_limit_was_loosened(run: Run, joined: SiteFolder) -> None:
    signing = make_or_load_keys(joined.keys).signing
    with closing(open_ledger(joined.ledger, joined.database, signing, ACCOUNTANTS, Clock())) as ledger:
        for limit in (4.0, 40.0, 3.0):
            ledger.note_limits({"epsilon_ever": limit, "epsilon_per_run": None, "delta": 1e-5})
    first, second, third = run("ledger", "show").out.splitlines()[-3:]
    assert "delta = 1e-05, epsilon_ever = 4, epsilon_per_run = no limit." in first
    assert "(entry 2): delta = 1e-05, epsilon_ever = 40, epsilon_per_run = no limit. LOOSENED: epsilon_ever" in second
    assert "LOOSENED" not in first + third
    assert run("ledger", "verify").code == 0


def test_every_command_that_reads_the_policy_refuses_without_it(run: Run, joined: SiteFolder, services: Server) -> None:
    services.studies.append(make_study(services))
    assert run("show", "hearts", "--json").json()["may_be_approved"]
    joined.policy.unlink()
    assert not run("show", "hearts", "--json").json()["may_be_approved"]
    commands: dict[tuple[str, ...], int] = {
        ("approve", "hearts"): 3, ("policy", "check", "hearts"): 3, ("ledger", "show"): 2, ("doctor",): 1
    }  # fmt: skip
    for command, code in commands.items():
        result = run(*command)
        assert (result.code, "is gone: this site had a policy" in result.out + result.err) == (code, True), command
    joined.policy.write_text(POLICY)
    assert run("approve", "hearts").code == 0
