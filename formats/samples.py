"""A sample: one row of a microbatch without its padding, named by the digest of its content."""

import hashlib
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
