"""The site file: what a site agreed to where Flower's daemons run and not ours, which keep no approvals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from quorate.errors import ConfigError
from quorate.identity import Member, SiteName
from quorate.study.study import Study
from quorate_client.site.agreement import Agreement, Dataset, for_study


@dataclass(frozen=True, slots=True)
class NodeSite:
    """What a site file says.

    Args:
        folder: Where the site keeps what is its own, laid out as a daemon's (``folder.py``).
        members: The public keys of the study's sites, for studies under secure aggregation. Whoever writes the file
            vouches that they are those sites': there is no roster to compare them with.
    """

    agreement: Agreement
    folder: Path
    members: tuple[Member, ...] = ()

    def write(self, path: Path) -> None:
        agreement = self.agreement
        dataset = agreement.dataset and agreement.dataset.to_plain()
        content = {
            "site": agreement.site,
            "folder": str(self.folder.absolute()),
            "study": agreement.study.canonical().decode(),
            "dataset": dataset,
            "members": [
                [m.name, m.signing_key.hex(), m.sealing_key.hex(), m.sealing_proof.hex()] for m in self.members
            ],
        }
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> NodeSite:
        """
        Raises:
            ConfigError: it is not a site file. StudyError: the study in it is not valid. KeyMismatchError: a member's
                signing key does not vouch for its sealing key. SyntheticRefusedError: its data set is not of the kind
                that the study trains on.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            study = Study.from_canonical(content["study"].encode())
            dataset = content["dataset"] and for_study(Dataset.from_plain(content["dataset"]), study)
            agreement = Agreement(study, study.digest(), SiteName(content["site"]), dataset, node_config={})
            members = tuple(Member(SiteName(name), *map(bytes.fromhex, keys)) for name, *keys in content["members"])
            return cls(agreement, Path(content["folder"]), members)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"Cannot read the site file {path}", got=type(error).__name__) from error
