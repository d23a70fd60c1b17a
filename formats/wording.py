"""Words of messages."""


def counted(count: int, noun: str) -> str:
    """A number of things, such as "1 sample", "2 entries" or "0 microbatches".

    Args:
        count: how many.
        noun: one of them; a regular noun, or a phrase that ends in one.

    Returns:
        The number, with commas between thousands, and the noun.
    """
    if count == 1:
        return f"1 {noun}"
    if noun.endswith("ry"):
        return f"{count:,} {noun[:-1]}ies"
    return f"{count:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"
