"""The text of forgotten rows, read from the log: only for who asked for it."""

from collections.abc import Mapping, Sequence

from lmcleaner.formats.reader import TrainingLog
from lmcleaner.training.models import load_tokenizer

REDACTED = "redacted"
MISSING = "not in the log"


def row_texts(log: TrainingLog, digests: Sequence[str], source: str | None = None) -> Mapping[str, str]:
    """What rows say, as the run's tokenizer decodes them.

    Args:
        log: the training log.
        digests: of the rows, hexadecimal.
        source: where the base model with its tokenizer lies now, if it moved.

    Returns:
        Digest -> text, or why there is none.

    Raises:
        NotFoundError: the tokenizer isn't there.
        DamagedError: a sample can't be read.
    """
    tokenizer = load_tokenizer(source or log.manifest.model.source)
    redacted = log.table("samples/redacted")

    def text(digest: str) -> str:
        row = log.sample_rows.get(bytes.fromhex(digest))
        if row is None:
            return MISSING
        if redacted[row]:
            return REDACTED
        return str(tokenizer.decode(log.sample(row).tokens.tolist(), skip_special_tokens=True)).strip()

    return {digest: text(digest) for digest in digests}
