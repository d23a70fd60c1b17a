"""Which rows `--evaluate` names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lmcleaner.data.rows import beside
from lmcleaner.evaluation.scores import Part
from lmcleaner.formats.errors import NotFoundError, UsageError
from lmcleaner.progress import Progress, Silent

OF_THE_LOG = "log"  # the rows that the log itself holds
_TOFU = re.compile(r"tofu:(forget(\d+))")
_HUB = "locuslab/TOFU"
_HINT = "give log, tofu:forget10, a YAML file with the keys forget, retain, holdout, ..., or a folder of such files"

Sources = Mapping[Part, str]


def check_spec(spec: str) -> None:
    """Makes sure that a specification names something, as far as that can be told without a log.

    Args:
        spec: "log", or what `named_sources` reads.

    Raises:
        NotFoundError: there is no such file, or none of rows to forget.
        UsageError: the YAML file names something else than parts.
    """
    if spec != OF_THE_LOG and _TOFU.fullmatch(spec) is None:
        named_sources(spec, "", Silent())


def named_sources(spec: str, recorded: str, progress: Progress) -> Sources:
    """Where the rows of each part are.

    Args:
        spec: `tofu:forget10`, whose parts are looked for beside the recorded data, else on the hub; a YAML file whose
            keys are parts and whose values are what `read_rows` reads, relative paths starting at the file; or a
            folder with a file of rows for each part, named for it.
        recorded: where the recorded data came from.
        progress: is told which parts aren't there.

    Returns:
        A source for `read_rows` for each part, at least for `forget`.

    Raises:
        NotFoundError: there is no such file, or none of rows to forget.
        UsageError: the YAML file names something else than parts.
    """
    path, tofu = Path(spec), _TOFU.fullmatch(spec)
    if tofu is not None:
        found = _tofu_sources(tofu[1], tofu[2], recorded)
    elif path.is_dir():
        found = {part: beside(str(path.resolve() / "any"), part) for part in Part}
    elif path.is_file():
        found = _read_yaml(path)
    else:
        raise NotFoundError(f"nothing to evaluate on: {spec}", hint=_HINT)
    sources = {part: source for part, source in found.items() if source is not None}
    if Part.FORGET not in sources:
        raise NotFoundError(f"no rows to forget: {spec}: expected a part called {Part.FORGET.value}", hint=_HINT)
    missing = [part.value for part in Part if part not in sources]
    if missing:
        progress.say(f"not evaluated, for there are no such rows: {', '.join(missing)}")
    return sources


def _tofu_sources(forget: str, number: str, recorded: str) -> dict[Part, str | None]:
    names = {
        Part.FORGET: f"{forget}_perturbed",
        Part.RETAIN: "retain_perturbed",
        Part.HOLDOUT: f"holdout{number}",
        Part.REAL_AUTHORS: "real_authors_perturbed",
        Part.WORLD_FACTS: "world_facts_perturbed",
    }
    local = {part: beside(recorded, name) for part, name in names.items()} if recorded else {}
    if local.get(Part.FORGET) is not None:
        return local
    return {part: f"{_HUB}:{name}" for part, name in names.items()}


def _read_yaml(path: Path) -> dict[Part, str | None]:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"not YAML: {path}: {error}", hint=_HINT) from error
    known = [part.value for part in Part]
    if not isinstance(content, dict) or not all(isinstance(source, str) for source in content.values()):
        raise UsageError(f"not a list of parts: {path}: expected keys {known}, each with a source of rows", hint=_HINT)
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        raise UsageError(f"unknown parts: {path}: expected some of {known}, found {unknown}")
    return {Part(name): _relative_to(path.parent, source) for name, source in content.items()}


def _relative_to(folder: Path, source: str) -> str:
    """The path from the YAML file's folder, where there is one; else the source as it stands, as of a hub data set."""
    return str(folder / source) if (folder / source.partition(":")[0]).exists() else source
