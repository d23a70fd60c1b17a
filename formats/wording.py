"""Words of messages."""


def counted(count: int, noun: str) -> str:
    """A number of things, such as "1 sample", "2 samples" or "0 microbatches".

    Args:
        count: how many.
        noun: one of them; a regular noun, or a phrase that ends in one.

    Returns:
        The number, with commas between thousands, and the noun.
    """
    ending = "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{count:,} {noun}{'' if count == 1 else ending}"
