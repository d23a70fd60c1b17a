"""What a file of experiments says: which runs to record, and which cells to unlearn from each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from lmcleaner.audit.options import AuditOptions
from lmcleaner.experiments.marked import Marked, read_marked
from lmcleaner.experiments.values import built, check_keys, keys_of, values_for
from lmcleaner.formats.errors import UsageError
from lmcleaner.recording.options import RecordOptions
from lmcleaner.unlearning.classic import AUDIT_RECORDS
from lmcleaner.unlearning.options import DEFAULT_MODE, UnlearnOptions, mode_options

Section = Mapping[str, Marked]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassicOptions:
    """Keys of the classic method that are no options of `unlearn`.

    Attributes:
        training_log_dir: where the log lies, or goes; by default saves/train_logs/NAME.
        audit_dir: where a further copy of audit_records.json goes.
        apply_immediately: whether the classic trainer corrects when it is made or when it trains; a file's cells are
            corrected when it is their turn, so that it makes no difference.
        batch_size_at_training: rows of a microbatch, to be held against the log.
    """

    training_log_dir: str | None = None
    audit_dir: Path | None = None
    apply_immediately: bool = False
    batch_size_at_training: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOptions:
    """Keys of `audit` that say what is left for people.

    Attributes:
        html: whether each cell gets a page of what its audit found.
    """

    html: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A run to record, or a log that is there.

    Attributes:
        name: of its folders.
        log: where its log lies, or goes.
        options: how to record it; None for a log that is there.
    """

    name: str
    log: str
    options: RecordOptions | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One unlearning run.

    Attributes:
        name: of its folder.
        recording: the run that it unlearns from.
        options: what to remove and how; `output` is where the result goes.
        classic: further keys.
        audit: how the result is checked.
        page: what is left for people.
        choices: which values of the grid it has, as section.key -> value.
        stated: all that the file says of it, to be compared with what a result was made with.
    """

    name: str
    recording: Recording
    options: UnlearnOptions
    classic: ClassicOptions
    audit: AuditOptions
    page: PageOptions
    choices: Mapping[str, Any]
    stated: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiments:
    """All cells of a file, in order.

    Attributes:
        name: of the whole.
        saves: folder of all results.
        cells: at least one; those of one recording stand together.
    """

    name: str
    saves: Path
    cells: tuple[Cell, ...]


_RECORD = keys_of(RecordOptions, {"output", "overwrite", "resume"})
_UNLEARN = keys_of(UnlearnOptions, {"output", "dry_run", "redact"}) | keys_of(ClassicOptions)
_AUDIT = keys_of(AuditOptions) | keys_of(PageOptions)
_TOP = ("name", "saves", "record", "unlearn", "requests", "audit", "grid")
_GRID = {"record": _RECORD, "unlearn": _UNLEARN}


def read_experiments(path: Path) -> Experiments:
    """Reads a file of experiments and checks all of it.

    Args:
        path: the YAML file; see docs/experiments.md.

    Returns:
        The experiments.

    Raises:
        NotFoundError: there is no such file.
        UsageError: a key or value makes no sense; the message names it and its line.
    """
    document = read_marked(path)
    top = document.mapping()
    check_keys(top, _TOP)
    name = _text(top, "name", path.stem)
    if not re.fullmatch(r"\w[\w.=-]*", name):
        raise UsageError(f"{_place(top, 'name', document)}: expected a name for folders, found {name!r}")
    saves = Path(_text(top, "saves", "saves"))
    sections = {key: _section(top, key, known) for key, known in {**_GRID, "audit": _AUDIT}.items()}
    requests = _requests(top)
    axes = _axes(top)
    places = {key: _place(top, key, document) for key in sections}
    cells = [
        _cell(name, saves, sections, places, _chosen(axes, chosen), request)
        for chosen in product(*axes.values())
        for request in requests
    ]
    _check_distinct(cells, document)
    _check_audit_places(cells, top)
    return Experiments(name=name, saves=saves, cells=tuple(cells))


def _text(top: Section, key: str, default: str) -> str:
    if key in top and not isinstance(top[key].value, str):
        raise UsageError(f"{top[key].place}: expected text, found {top[key].plain!r}")
    return str(top[key].value) if key in top else default


def _place(top: Section, key: str, document: Marked) -> str:
    return top[key].place if key in top else f"{document.place}: {key}"


def _section(top: Section, key: str, known: set[str]) -> Section:
    section = top[key].mapping() if key in top else {}
    check_keys(section, known)
    return section


def _requests(top: Section) -> Sequence[Section]:
    """Each with a name of its own; one without anything where the file lists none."""
    if "requests" not in top:
        return [{}]
    found = [marked.mapping() for marked in top["requests"].list()]
    for marked, request in zip(top["requests"].list(), found, strict=True):
        check_keys(request, {*_UNLEARN, "name"})
        if not isinstance(request["name"].value if "name" in request else None, str):
            raise UsageError(f"{marked.place}: name: expected a name for the request's folder")
    return found


def _axes(top: Section) -> dict[tuple[str, str], list[Marked]]:
    """The grid's lists by section and key; those of the recordings come first, so that their cells stand together."""
    grid = top["grid"].mapping() if "grid" in top else {}
    check_keys(grid, _GRID)
    axes = dict[tuple[str, str], list[Marked]]()
    for section, known in _GRID.items():
        lists = grid[section].mapping() if section in grid else {}
        check_keys(lists, known)
        axes |= {(section, key): marked.list() for key, marked in lists.items()}
    return axes


def _chosen(axes: Mapping[tuple[str, str], list[Marked]], chosen: Sequence[Marked]) -> dict[str, dict[str, Marked]]:
    found: dict[str, dict[str, Marked]] = {"record": {}, "unlearn": {}}
    for (section, key), marked in zip(axes, chosen, strict=True):
        found[section][key] = marked
    return found


def _cell(
    name: str,
    saves: Path,
    sections: Mapping[str, Section],
    places: Mapping[str, str],
    chosen: Mapping[str, Section],
    request: Section,
) -> Cell:
    record = {**sections["record"], **chosen["record"]}
    unlearn = {**sections["unlearn"], **{k: v for k, v in request.items() if k != "name"}, **chosen["unlearn"]}
    classic = built(ClassicOptions, unlearn, values_for(ClassicOptions, unlearn), places["unlearn"])
    values = _unlearn_values(unlearn)
    recording = _recording(name + _suffix(chosen["record"]), saves, record, classic, chosen, places["record"])
    own = f"_{request['name'].value}" if request else ""
    cell_name = recording.name + own + _suffix(chosen["unlearn"])
    values["output"] = saves / "unlearn" / cell_name
    audit = sections["audit"]
    return Cell(
        name=cell_name,
        recording=recording,
        options=built(UnlearnOptions, unlearn, values, places["unlearn"]),
        classic=classic,
        audit=built(AuditOptions, audit, values_for(AuditOptions, audit), places["audit"]),
        page=built(PageOptions, audit, values_for(PageOptions, audit), places["audit"]),
        choices={f"{section}.{key}": marked.plain for section in chosen for key, marked in chosen[section].items()},
        stated={"record": _plain(record), "unlearn": _plain(unlearn), "audit": _plain(audit)},
    )


def _recording(
    name: str, saves: Path, record: Section, classic: ClassicOptions, chosen: Mapping[str, Section], place: str
) -> Recording:
    if not record and classic.training_log_dir is not None:
        return Recording(name=name, log=classic.training_log_dir, options=None)
    if chosen["record"] and classic.training_log_dir is not None:
        raise UsageError(f"{place}: several runs can't go into one training_log_dir: leave it out")
    values = values_for(RecordOptions, record) | {"output": saves / "finetune" / name}
    log = classic.training_log_dir or str(saves / "train_logs" / name)
    return Recording(name=name, log=log, options=built(RecordOptions, record, values, place))


def _unlearn_values(unlearn: Section) -> dict[str, Any]:
    """Arguments of `UnlearnOptions`; a file's requests don't know of each other unless it says so."""
    words, values = dict(unlearn), dict[str, Any](ledger=False)
    if "K" in words and words["K"].value == "all":
        del words["K"]
        values["K"] = None
    mode = words.pop("hessian_mode", None)
    values |= values_for(UnlearnOptions, words)
    named = mode or words.get("tolerance")
    if named is not None:
        try:
            values |= mode_options(str(mode.plain if mode else DEFAULT_MODE), values.get("tolerance"))
        except UsageError as error:
            raise UsageError(f"{named.place}: {error.message}", hint=error.hint) from error
    return values


def _suffix(chosen: Section) -> str:
    """What tells a cell from others in the names of folders; of a path its last part."""
    return "".join(f"_{key}={_slug(marked.plain)}" for key, marked in chosen.items())


def _slug(value: Any) -> str:
    text = "+".join(value) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text.rstrip("/").rpartition("/")[2])


def _plain(section: Section) -> dict[str, Any]:
    return {key: marked.plain for key, marked in section.items()}


def _check_distinct(cells: Sequence[Cell], document: Marked) -> None:
    """No two cells, and no two recordings, may share folders."""
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{document.place}: two cells would be called {twice[0]}: change a name or a value")
    recordings = {(cell.recording.name, str(cell.stated["record"])) for cell in cells}
    if len(recordings) != len({name for name, _ in recordings}):
        raise UsageError(f"{document.place}: two recordings would have the same name: change a value")


def _check_audit_places(cells: Sequence[Cell], top: Section) -> None:
    """No two cells may write their records into one folder, where the last one's would be left."""
    folders = [cell.classic.audit_dir for cell in cells if cell.classic.audit_dir is not None]
    twice = sorted(str(folder) for folder in set(folders) if folders.count(folder) > 1)
    if not twice:
        return
    places = [marked.place for marked in _audit_dirs(top) if str(Path(str(marked.plain))) == twice[0]]
    raise UsageError(
        f"{places[0]}: several cells would write {twice[0]}/{AUDIT_RECORDS}",
        hint="leave audit_dir out, since each cell has its own audit/ folder, or give each request another one",
    )


def _audit_dirs(top: Section) -> list[Marked]:
    """Where the file names an audit_dir: for all cells, for a request, or in the grid."""
    sections = [top["unlearn"].mapping() if "unlearn" in top else {}, *_requests(top)]
    found = [section["audit_dir"] for section in sections if "audit_dir" in section]
    return found + _axes(top).get(("unlearn", "audit_dir"), [])
