"""The commit record: what a log vouches for. It is written last and replaced as a whole."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.layout import COMMIT, damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Number of committed rows and digest of everything that a log holds.

    Attributes:
        steps: committed optimizer steps.
        finished: whether the run came to its own end.
        tables: name -> {"rows": count, "sha256": digest of all rows' little-endian bytes}.
        checkpoints: step as text -> {array name: SHA-256 of its little-endian bytes}.
    """

    steps: int
    finished: bool
    tables: dict[str, dict[str, Any]]
    checkpoints: dict[str, dict[str, str]]

    def root(self, manifest_digest: str) -> str:
        """SHA-256 over the manifest's digest and the digests of all tables and checkpoints.

        The updates are covered through steps/parameters_sha256, which they must reproduce.

        Args:
            manifest_digest: SHA-256 of the manifest.

        Returns:
            64 hexadecimal digits that name the log's whole content.
        """
        return json_digest({"manifest": manifest_digest, **asdict(self)})

    def to_json(self, manifest_digest: str) -> dict[str, Any]:
        """The record as it is stored, root included."""
        return {**asdict(self), "root": self.root(manifest_digest)}

    @classmethod
    def from_json(cls, document: dict[str, Any], manifest_digest: str, where: str) -> Self:
        """Builds the record and checks it against its own root.

        Args:
            document: attributes of the commit group.
            manifest_digest: SHA-256 of the manifest as it was read.
            where: the log, for messages.

        Returns:
            The commit record.

        Raises:
            DamagedError: a field is missing or the root doesn't match.
        """
        try:
            commit = cls(**{name: document[name] for name in cls.__dataclass_fields__})
            found, expected = commit.root(manifest_digest), document["root"]
        except (KeyError, TypeError) as error:
            raise damaged(where, COMMIT, f"the commit record can't be read ({error})") from error
        if found != expected:
            raise damaged(where, COMMIT, f"expected root {expected}, found {found}")
        return commit
