"""A YAML file in which every value knows its key and line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmcleaner.formats.errors import NotFoundError, UsageError


@dataclass(frozen=True, slots=True)
class Marked:
    """A value of the file.

    Attributes:
        value: a scalar, a list of marked values, or a mapping from keys to them.
        place: file, line and keys, for messages.
    """

    value: Any
    place: str

    @property
    def plain(self) -> Any:
        """The value without its marks."""
        if isinstance(self.value, dict):
            return {key: marked.plain for key, marked in self.value.items()}
        return [marked.plain for marked in self.value] if isinstance(self.value, list) else self.value

    def mapping(self) -> dict[str, "Marked"]:
        """The value as a mapping; an empty one where nothing stands.

        Raises:
            UsageError: it is something else.
        """
        if self.value is not None and not isinstance(self.value, dict):
            raise UsageError(f"{self.place}: expected keys with values, found {self.plain!r}")
        return self.value or {}

    def list(self) -> list["Marked"]:
        """The value as a list with at least one entry.

        Raises:
            UsageError: it is something else.
        """
        if not isinstance(self.value, list) or not self.value:
            raise UsageError(f"{self.place}: expected a list, found {self.plain!r}")
        return self.value


def read_marked(path: Path) -> Marked:
    """Reads a YAML file; a hyphen in a key counts as an underscore.

    Args:
        path: the file.

    Returns:
        The whole document.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it isn't YAML, or a key stands twice in a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFoundError(f"no such file: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8: {path}: {error.reason}") from error
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        return Marked(None, f"{path}: line 1") if node is None else _Reader(loader, path.name).marked(node, "")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"not YAML: {path.name}: line {line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"not YAML: {path.name}: {error}") from error
    finally:
        loader.dispose()


class _Reader:
    """From nodes to marked values."""

    def __init__(self, loader: yaml.SafeLoader, file: str) -> None:
        self._loader, self._file = loader, file

    def marked(self, node: yaml.Node, keys: str, line: int | None = None) -> Marked:
        place = self._place(keys, node.start_mark.line if line is None else line)
        if isinstance(node, yaml.MappingNode):
            return Marked(self._mapping(node, keys), place)
        if isinstance(node, yaml.SequenceNode):
            return Marked([self.marked(entry, f"{keys}[{n}]") for n, entry in enumerate(node.value)], place)
        return Marked(self._loader.construct_object(node, deep=True), place)

    def _mapping(self, node: yaml.MappingNode, keys: str) -> dict[str, Marked]:
        own = [str(key.value).replace("-", "_") for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if own[number] in own[:number]:
                raise UsageError(f"{self._place(keys, key.start_mark.line)}: {key.value} stands here a second time")
        self._loader.flatten_mapping(node)  # takes in what << refers to
        found = dict[str, Marked]()
        for key, value in node.value:
            name = str(key.value).replace("-", "_")
            found[name] = self.marked(value, f"{keys}.{name}".lstrip("."), key.start_mark.line)
        return found

    def _place(self, keys: str, line: int) -> str:
        return f"{self._file}: line {line + 1}" + (f": {keys}" if keys else "")
