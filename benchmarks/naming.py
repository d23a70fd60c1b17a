"""A benchmark's parts by their names on its command line."""

import argparse
from collections.abc import Collection, Sequence


def add_names(parser: argparse.ArgumentParser, what: str, known: Collection[str], default: Sequence[str]) -> None:
    """Takes any number of names; argparse's own `choices` would refuse none of them.

    Args:
        parser: of the command line.
        what: is named.
        known: what may be named.
        default: what is meant where nothing is named.
    """

    def one_of_them(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, found {word}")
        return word

    parser.add_argument(what, nargs="*", type=one_of_them, default=default, metavar="|".join(known))
