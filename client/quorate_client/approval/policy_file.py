"""``policy.toml``: its defaults, who may write it, read anew before every instruction."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from quorate.attestation.policy import AttestationPolicy
from quorate.errors import (
    ConfigError,
    PolicyError,
)
from quorate.study.study import Study
from quorate_client.approval.policy import Policy, require_valid
from quorate_client.site.config import parse_toml
from quorate_client.site.database import site_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import owner_of
from quorate_client.site.trusted_file import read_trusted

DEFAULT_POLICY_TOML = """\
# What this site lets happen, whatever the consortium publishes. These are the defaults.

# How updates may be protected. "enclave" lets an attested machine read them, "none" the server; they must be added here
# for such a study to run.
protection = ["secagg"]

# May a study without protection count exactly how its model does on held-out records here? The server has the counts of
# this site, and can make up the models that are tried: one question after the other reads values of held-out records.
evaluation_without_protection = false

# Least number of sites in a study, and least number whose updates make a round count.
minimum_sites = 3

# Least number of sites that may work together with the server and still learn no single site's update. 0 is for studies
# of two sites, where each learns the other's in any case.
colluders = 1

# Who may get the final model: "sites" (it stays with them), "operator" (the operator may fetch it too).
release = ["sites"]

# Tasks that may run here. A stock Flower app is named "flower:MODULE:ATTRIBUTE".
tasks = ["tabular-classifier", "image-classifier"]

# Refuse to run a task where the system does not let it be cut off from the network and the keys.
require_isolation = false

# When sites train here, by this machine's clock; "20:00-06:00" is at night.
hours = "00:00-24:00"

# Whether this site's own metrics tell the names of its data sets. They are numbered otherwise.
dataset_names_in_metrics = false

[privacy]
# Mechanisms that a study must have on: "training" (DP-SGD, per record), "update" (noise before sending, per site),
# "average" (noise after averaging, per site), "evaluation" (noise on what is counted on held-out records).
# docs/concepts/differential-privacy.md says what each promises.
require = []

# Least noise multiplier of each mechanism that a study has on, and largest norm to which it may clip.
least_noise = 0.0
# largest_clip = 1.0

# Least number of training records (or units) of a data set on which a study with [privacy.training] runs, or from which
# a synthetic data set is made.
least_records = 50

# Largest delta of a study. Absent: 1 / records^1.1 of the data set.
# largest_delta = 1e-5

# Most epsilon per record (or per unit, where the data set names units) that a data set spends in one run, in the last
# 365 days, and for ever. Absent: no limit. Of its test part it is per held-out record, also where there are units.
# Once there is a limit, no study runs here that has no [privacy.training] and trains on records: nothing bounds what it
# would spend. Nor is a synthetic data set made without privacy.
# epsilon_per_run = 4.0
# epsilon_per_year = 8.0
# epsilon_ever = 16.0

# The chance that a limit on epsilon may fail to hold: all of them are held at this delta, whatever delta a study has.
# Set it below 1 / (number of records) before you set a limit; a limit means something else at another delta.
delta = 1e-5

# What limits for a year and for ever say to records that were released without a bound, by a study without
# [privacy.training] or a guest app, or held-out ones by exact counts: "refuse" every further private study of theirs,
# or "set_aside" that and hold the rest to the limit.
unbounded = "refuse"

[synthetic]
# What studies may train on: "real" records, "synthetic" ones that this site made of them, or both ("mixed").
training_data = ["real", "synthetic", "mixed"]

# May a synthetic set be made and used of which no epsilon bounds what it tells of the real records? Where [privacy] has
# a limit on epsilon none is used in any case.
without_privacy = false

# Most epsilon for which a synthetic set was made. Those of [privacy] hold beside it. A promise of thousands is none.
largest_epsilon = 10.0

# Most that the report of a set found an attacker to gain on the real records, by any of four attacks, and most area
# under the curve that a model loses by training on the set. A study may ask for less, never for more.
# docs/concepts/synthetic-data.md says what these figures show and what they do not.
largest_risk = 0.09
largest_utility_loss = 0.1

[attestation]
# Must the machine that adds the sites' updates prove what it is and what runs in it, beside secure aggregation? Which
# machines and which software, the study says. docs/concepts/attestation.md says what that protects from and what not.
required = false

# A policy of this site's own beside this file, such as "attestation.toml": evidence has to meet both then.
file = ""

# May evidence count that a program makes of itself? For development only: it proves nothing about any machine.
software = false
"""

_REMEMBERING: set[tuple[int, int]] = set()
"""The databases, by device and inode, that remember a policy."""


def has_policy(folder: SiteFolder) -> bool:
    """Whether there is a policy at this site, or was one.

    Raises:
        ConfigError, WrongStateError: that cannot be told.
    """
    return _is_there(folder.policy) or _is_remembered(folder)


def read_policy(folder: SiteFolder) -> Policy:
    """Read ``policy.toml``, and remember that there is one.

    Raises:
        ConfigError: as ``look_at_policy``. WrongStateError, DiskFullError: the site's database cannot be used.
    """
    given = _given(folder)
    if given is None:
        return Policy()
    _remember(folder)
    return given


def look_at_policy(folder: SiteFolder) -> Policy:
    """What ``policy.toml`` says; the defaults where there never was one. Changes nothing.

    Raises:
        ConfigError: naming the file, each wrong key and what was expected; or it is gone, or somebody else than root
            and the owner of the site's keys could have chosen what is in it.
    """
    return _given(folder) or Policy()


def own_attestation_policy(folder: SiteFolder, policy: Policy) -> AttestationPolicy | None:
    """The policy that ``attestation.file`` names, if it names one.

    Raises:
        ConfigError: as ``look_at_policy``; it is not there, or wrong.
    """
    if not policy.attestation.file:
        return None
    path = folder.root / policy.attestation.file
    text = read_trusted(path, frozenset({0, owner_of(folder.keys)}))
    return parse_toml(text, path, AttestationPolicy)


def write_default_policy(folder: SiteFolder) -> None:
    """Give a site that has no policy one to read and change. One that is gone is not replaced."""
    if has_policy(folder):
        return
    descriptor = os.open(folder.policy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(DEFAULT_POLICY_TOML)
    _remember(folder)


def _given(folder: SiteFolder) -> Policy | None:
    if not has_policy(folder):
        return None
    if not _is_there(folder.policy):
        raise ConfigError(
            f"{folder.policy} is gone: this site had a policy",
            action="Put it back, and see who took it away. If the defaults shall hold from now on, say so with an "
            f"empty file: `touch {folder.policy}`",
        )
    text = read_trusted(folder.policy, frozenset({0, owner_of(folder.keys)}))
    return parse_toml(text, folder.policy, Policy)


def _is_there(path: Path) -> bool:
    """A link that leads nowhere is there."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"Cannot look for {path}", got=error.strerror or "") from error
    return True


def _is_remembered(folder: SiteFolder) -> bool:
    if not folder.database.exists():
        return False
    with site_state(folder.database) as state:
        return state.had_policy


def _remember(folder: SiteFolder) -> None:
    """Once for each database: what is remembered there nothing takes back, and to open one costs more than to read the
    policy. It is known by its inode: one that is put in its place learns of the policy too.
    """
    database = _inode(folder.database)
    if database is not None and database in _REMEMBERING:
        return
    with site_state(folder.database) as state:
        state.remember_policy()
    if database is not None:
        _REMEMBERING.add(database)


def _inode(path: Path) -> tuple[int, int] | None:
    """Nobody else has it while the file is open, as the database of a running daemon is."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def policy_now(folder: SiteFolder) -> Policy:
    """The policy as it is on disk at this moment.

    Raises:
        PolicyError: the file cannot be read, so nothing is allowed.
    """
    try:
        return read_policy(folder)
    except ConfigError as error:
        raise PolicyError("The site's policy cannot be read, so nothing is allowed", got=str(error)) from error


def check_policy_now(folder: SiteFolder, study: Study, now: datetime) -> Policy:
    """Hold a study against its own last day and against the policy as it is on disk at this moment.

    Args:
        now: This machine's time, with its zone.

    Raises:
        PolicyError: the policy does not allow it, or cannot be read. StudyExpiredError.
    """
    policy = policy_now(folder)
    policy.check(study)
    require_valid(study, now)
    return policy
