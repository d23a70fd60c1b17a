"""Rows of a data set on the Hugging Face hub, or of its copy in the cache of `datasets`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmcleaner.data.files import Row
from lmcleaner.formats.errors import NotFoundError


def read_split(name: str, parts: Sequence[str]) -> tuple[str, list[Row]]:
    """Reads one split.

    Args:
        name: of the data set, such as "locuslab/TOFU".
        parts: nothing, the name of a configuration or of a split, or both.

    Returns:
        The split's name, "train" or the only one where none is named, and its rows in order.

    Raises:
        NotFoundError: there is no such data set or part of it, it can't be reached, or the `datasets` library isn't
            there.
    """
    source = ":".join([name, *parts])
    config, split = (*parts, None, None)[:2]
    splits: Mapping[str, Any]
    try:
        splits = _load(name, config, source)
    except ValueError as error:  # there is no configuration of that name
        if config is None or split is not None:
            raise _missing(source, error) from error
        splits = _splits_of_default(name, config, source, error)
        split = config
    chosen = _chosen(splits, split, source)
    return chosen, [dict(row) for row in splits[chosen]]


def _splits_of_default(name: str, split: str, source: str, reason: ValueError) -> Mapping[str, Any]:
    """All splits of the default configuration, one of which has this name."""
    try:
        splits = _load(name, None, source)
    except ValueError:  # there is no default
        splits = {}
    if split not in splits:
        raise _missing(source, reason) from reason
    return splits


def _load(name: str, config: str | None, source: str) -> Mapping[str, Any]:
    """Splits by name.

    Raises:
        ValueError: there is no such configuration.
        NotFoundError: anything else that is in the way.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise NotFoundError(
            f"neither a file nor a folder, and data sets of the hub need the datasets library: {source}",
            hint="give an existing file, or `pip install 'lmcleaner[datasets]'`",
        ) from error
    try:
        splits: Mapping[str, Any] = load_dataset(name, config)
    except (OSError, DatasetsError) as error:  # among them that there is no network, and no copy in the cache
        raise _missing(source, error) from error
    return splits


def _chosen(splits: Mapping[str, Any], split: str | None, source: str) -> str:
    is_only = split is None and len(splits) == 1
    wanted = next(iter(splits)) if is_only else split or "train"
    if wanted not in splits:
        raise NotFoundError(
            f"no such split: {source}: expected one of {sorted(splits)}, found {wanted}",
            hint="name it behind a colon, as in locuslab/TOFU:forget10",
        )
    return wanted


def _missing(source: str, reason: Exception) -> NotFoundError:
    return NotFoundError(
        f"neither a file nor a folder, nor a data set that can be loaded: {source}: {' '.join(str(reason).split())}",
        hint="a data set that was loaded once is found offline in its cache; a local copy of its files serves as well, "
        "as FOLDER:NAME",
    )
