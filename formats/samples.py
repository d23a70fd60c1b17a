"""A sample: one row of a microbatch without its padding, named by the digest of its content."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED_LABEL = -100  # torch.nn.functional.cross_entropy's default ignore_index
_DOMAIN = b"lmcleaner-sample-v1\0"  # keeps these digests apart from any other SHA-256 of the same bytes

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Token ids and labels of one row, without padding.

    Attributes:
        tokens: int32 `[length]`.
        labels: int32 `[length]`; `IGNORED_LABEL` where the loss doesn't look.
        tombstone: digest of what was here before it was overwritten on request; empty for a sample as the run saw it.
    """

    tokens: IntArray
    labels: IntArray
    tombstone: bytes = b""

    @property
    def is_redacted(self) -> bool:
        """Whether the content was overwritten on request."""
        return bool(self.tombstone)

    @property
    def digest(self) -> bytes:
        """SHA-256, 32 bytes, of the domain tag, the length as uint64 and both arrays, all little-endian.

        A tombstone keeps the digest of what was there.
        """
        if self.tombstone:
            return self.tombstone
        content = hashlib.sha256(_DOMAIN)
        content.update(len(self.tokens).to_bytes(8, "little"))
        content.update(self.tokens.astype("<i4").tobytes())
        content.update(self.labels.astype("<i4").tobytes())
        return content.digest()

    @property
    def num_targets(self) -> int:
        """Number of tokens that the loss counts; the first token is never predicted."""
        return int(np.count_nonzero(self.labels[1:] != IGNORED_LABEL))


class StoredSample(Sample):
    """A sample of a log: named by the digest that the log holds, its content read when somebody looks at it."""

    __slots__ = ("_content", "_digest", "_read")
    _content: Sample | None
    _digest: bytes
    _read: Callable[[], Sample]

    def __init__(self, digest: bytes, read: Callable[[], Sample], *, is_redacted: bool) -> None:
        """Reads nothing yet.

        Args:
            digest: of the sample.
            read: gives its content.
            is_redacted: whether it is a tombstone.
        """
        for name, value in {"_digest": digest, "_read": read, "_content": None}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "tombstone", digest if is_redacted else b"")

    @property
    def tokens(self) -> IntArray:
        """int32 `[length]`."""
        return self._loaded().tokens

    @property
    def labels(self) -> IntArray:
        """int32 `[length]`."""
        return self._loaded().labels

    @property
    def digest(self) -> bytes:
        """As the log holds it; reading the content makes sure that it is right."""
        return self._digest

    def _loaded(self) -> Sample:
        if self._content is None:
            object.__setattr__(self, "_content", self._read())
        assert self._content is not None
        return self._content
