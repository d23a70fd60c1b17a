"""The commit record: what a log vouches for. It is written last and replaced as a whole."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from lmcleaner.formats.canonical import json_digest
from lmcleaner.formats.documents import Json, problem_of
from lmcleaner.formats.layout import COMMIT, damaged
from lmcleaner.formats.ranges import Ranges
from lmcleaner.formats.tables import TableCommit


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCommit:
    """What the commit record says of a checkpoint.

    Attributes:
        dtypes: part of the optimizer's state -> dtype name, for the parts that have the parameters' shape.
        scalars: parts of the state that are one number a parameter.
        generator_bytes: bytes of the random number generators' state.
        blake3: array name -> digest of its little-endian bytes, hexadecimal.
    """

    dtypes: Mapping[str, str]
    scalars: tuple[str, ...]
    generator_bytes: int
    blake3: Mapping[str, str]


EstimateKind = Literal["diag", "diag_hessian", "low_rank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvatureCommit:
    """What the commit record says of an estimate of the curvature.

    Attributes:
        kind: a diagonal of the GGN or of the Hessian, or the largest eigenpairs of the GGN.
        rank: eigenpairs that were asked for; 0 of a diagonal.
        pairs: eigenpairs that there are, at most `rank`.
        trace: estimated trace of the whole matrix.
        blake3: array name -> digest of its little-endian bytes, hexadecimal.
    """

    kind: EstimateKind
    rank: int
    pairs: int
    trace: float
    blake3: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that was done to a log after it was recorded.

    Attributes:
        kind: what was done.
        time: when, UTC, ISO 8601.
        root_before: the log's root until then.
        details: what a reader may want to know of it; for a redaction, among others the audit document's SHA-256.
    """

    kind: Literal["redaction", "pruning", "curvature"]
    time: str
    root_before: str
    details: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """Whether the run could be replayed when it had ended.

    Attributes:
        state: "exact" to the bit, "close" within `error`, or "no".
        steps: steps that were taken again.
        error: largest distance from the run's parameters after one of them, relative to the step; None where it isn't
            known.
        why: what is in the way; "" where nothing is.
    """

    state: Literal["exact", "close", "no"]
    steps: int
    error: float | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Number of committed rows and digest of everything that a log holds.

    Attributes:
        generation: where the log's arrays lie.
        steps: committed optimizer steps.
        finished: whether the run came to its own end.
        tables: what is committed of each table.
        checkpoints: step -> what is committed of its checkpoint.
        updates: [first, stop) of each range of steps whose updates the log holds, ascending.
        gradients: likewise of the gradients.
        corrections: steps before which a lossy reconstruction is taken back to the run's own bits, ascending.
        history: what was done to the log since, oldest first.
        curvature: step -> what is committed of the estimate from there on; serves until the next one.
        self_check: whether the run could be replayed; None where nobody tried.
    """

    generation: int
    steps: int
    finished: bool
    tables: Mapping[str, TableCommit]
    checkpoints: Mapping[int, CheckpointCommit]
    updates: Ranges
    gradients: Ranges
    corrections: tuple[int, ...]
    history: tuple[Change, ...] = field(default=())
    curvature: Mapping[int, CurvatureCommit] = field(default_factory=dict)
    self_check: SelfCheck | None = None

    def root(self, manifest_digest: str) -> str:
        """SHA-256 over the manifest's digest and the digests of all tables and checkpoints.

        The updates are covered through the digest of the parameters after each step, which they must reproduce.

        Args:
            manifest_digest: SHA-256 of the manifest.

        Returns:
            64 hexadecimal digits that name the log's whole content.
        """
        return json_digest({"manifest": manifest_digest, **self._plain()})

    def to_json(self, manifest_digest: str) -> Json:
        """The record as it is stored, root included."""
        return {**self._plain(), "root": self.root(manifest_digest)}

    @classmethod
    def from_json(cls, document: Json, manifest_digest: str, where: str) -> Self:
        """Builds the record and checks it against its own root.

        Args:
            document: attributes of the commit group.
            manifest_digest: SHA-256 of the manifest as it was read.
            where: the log, for messages.

        Returns:
            The commit record.

        Raises:
            DamagedError: it breaks its schema, or the root doesn't match.
        """
        problem = problem_of(document, "commit.schema.json")
        if problem is not None:
            raise damaged(where, COMMIT, f"the commit record can't be read: {problem}")
        expected = document["root"]
        content = {name: value for name, value in document.items() if name != "root"}
        found = json_digest({"manifest": manifest_digest, **content})
        if found != expected:
            raise damaged(where, COMMIT, f"expected root {expected}, found {found}")
        return cls(
            generation=document["generation"],
            steps=document["steps"],
            finished=document["finished"],
            tables={name: TableCommit(**table) for name, table in document["tables"].items()},
            checkpoints={int(step): _checkpoint(entry) for step, entry in document["checkpoints"].items()},
            updates=tuple((first, stop) for first, stop in document["updates"]),
            gradients=tuple((first, stop) for first, stop in document["gradients"]),
            corrections=tuple(document["corrections"]),
            history=tuple(Change(**change) for change in document["history"]),
            curvature={int(step): CurvatureCommit(**entry) for step, entry in document.get("curvature", {}).items()},
            self_check=SelfCheck(**document["self_check"]) if "self_check" in document else None,
        )

    def _plain(self) -> Json:
        plain: dict[str, Any] = asdict(self)
        for name in ("checkpoints", "curvature"):
            plain[name] = {str(step): entry for step, entry in plain[name].items()}
        for name in ("curvature", "self_check"):
            if not plain[name]:  # a record without has the bytes that it had before there was such a thing
                del plain[name]
        return plain


def _checkpoint(entry: Json) -> CheckpointCommit:
    return CheckpointCommit(**entry | {"scalars": tuple(entry["scalars"])})
