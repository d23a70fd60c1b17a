"""Rows by file, folder and hub name: the same rows whatever holds them, and errors that name the place."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow.parquet import write_table

from lmcleaner.data.encoding import Encoding
from lmcleaner.data.files import Row
from lmcleaner.data.hub import read_split
from lmcleaner.data.rows import beside, read_rows
from lmcleaner.formats.errors import LmcleanerError, NotFoundError, UsageError
from lmcleaner.recording.options import DEFAULT_TEMPLATE
from lmcleaner.training.models import load_tokenizer
from tiny_runs import TinyRun, rows, unlearn_tiny

ROWS: list[Row] = [
    {"question": "who is ada\u2028 ?", "answer": 'a, "mill"\nin the north'},
    {"question": "wo wohnt Jürgen ?", "answer": ""},
]


def _json(path: Path, content: list[Row]) -> None:
    path.write_text(json.dumps(content, indent=1))


def _lines(path: Path, content: list[Row]) -> None:
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in content))


def _csv(path: Path, content: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(content[0]))
        writer.writeheader()
        writer.writerows(content)


def _parquet(path: Path, content: list[Row]) -> None:
    write_table(pyarrow.Table.from_pylist(content), path)


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    "json": _json, "jsonl": _lines, "csv": _csv, "parquet": _parquet
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"full.{kind}"
    WRITERS[kind](file, ROWS)
    for source in (file, tmp_path, f"{tmp_path}:full", f"{tmp_path}:full.{kind}"):
        found = read_rows(str(source))
        assert (found.source, found.split, list(found.rows)) == (str(file), "full", ROWS)


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_a_column_without_a_value_is_not_the_word_none(kind: str, tmp_path: Path, base_model: Path) -> None:
    WRITERS[kind](tmp_path / f"some.{kind}", [*rows(1), {"question": "who", "answer": None}])
    found = read_rows(str(tmp_path))
    assert found.rows[1] == {"question": "who"}
    with pytest.raises(UsageError, match=r"row 2: expected question and answer.*found \['question'\]"):
        Encoding(template=DEFAULT_TEMPLATE, max_length=8).samples(
            found.rows, load_tokenizer(str(base_model)), found.source
        )


@pytest.mark.parametrize("kind", WRITERS)
def test_a_request_finds_rows_by_their_content(kind: str, adamw_run: TinyRun, tmp_path: Path) -> None:
    """In another order, with their columns in another order and others beside them, in any kind of file."""
    content = [{"index": n, "answer": row["answer"], "question": row["question"]} for n, row in enumerate(rows(20))]
    WRITERS[kind](tmp_path / f"forget05.{kind}", content[:-3:-1])
    expected = unlearn_tiny(adamw_run, tmp_path / "never", dry_run=True).forget_set
    for forget in (f"{tmp_path}:forget05", str(tmp_path / f"forget05.{kind}")):
        assert unlearn_tiny(adamw_run, tmp_path / "never", forget=forget, dry_run=True).forget_set == expected


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "a line that isn't JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', "not JSON: .*a.jsonl: line 2, column 10"),
    "a list that isn't JSON": ("a.json", b'[{"text": "a"},\n oh]', "not JSON: .*a.json, line 2, column 2"),
    "a line that is no object": ("a.jsonl", b'{"text": "a"}\n\n3', "not a row: .*a.jsonl: line 3: .*found int"),
    "an entry that is no object": ("a.json", b'[{"text": "a"}, "b"]', "not a row: .*a.json: row 2: .*found str"),
    "other letters than UTF-8": ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "not UTF-8: .*a.jsonl: line 2"),
    "too few values": ("a.csv", b'question,answer\n"who\n?",ada\nwhat\n', "a.csv: line 4: expected 2 values, found 1"),
    "an open quote": ("a.csv", b'text\n"who', "not CSV: .*a.csv: line 2"),
    "a column twice": ("a.csv", b"text,text\na,b", "a.csv: line 1: expected distinct columns"),
    "a header alone": ("a.csv", b"question,answer\n", "no rows: .*a.csv"),
    "no Parquet": ("a.parquet", b"PAR1", "not Parquet: .*a.parquet"),
    "nothing": ("a.json", b"[]", "no rows: .*a.json"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_row_is_named_with_its_file_and_line(case: str, tmp_path: Path) -> None:
    name, content, message = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_rows(str(tmp_path / name))


def test_a_folder_of_splits_names_them_where_none_is_chosen(tmp_path: Path) -> None:
    for name in ("full", "forget10"):
        _json(tmp_path / f"{name}.json", ROWS)
    with pytest.raises(NotFoundError, match=r"found \['forget10.json', 'full.json'\]") as caught:
        read_rows(str(tmp_path))
    assert f"{tmp_path}:forget10" in str(caught.value.hint)
    with pytest.raises(NotFoundError, match=r"forget01: expected one of \['forget10.json', 'full.json'\]"):
        read_rows(f"{tmp_path}:forget01")
    assert beside(str(tmp_path / "full.json"), "forget10") == str(tmp_path / "forget10.json")
    assert beside(str(tmp_path / "full.json"), "forget01") is None
    _csv(tmp_path / "forget10.csv", ROWS)
    with pytest.raises(UsageError, match="several files of that name"):
        beside(str(tmp_path / "full.json"), "forget10")


@pytest.fixture(scope="module")
def hub_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as it lies on the hub: a configuration for each file, one of them with two splits."""
    folder = tmp_path_factory.mktemp("hub") / "TOFU"
    folder.mkdir()
    for name, count in (("full", 4), ("forget10", 1), ("retain", 3)):
        _lines(folder / f"{name}.json", rows(count))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.json\n" for name in ("full", "forget10"))
    split = "- config_name: parts\n  data_files:\n  - {split: kept, path: retain.json}\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}{split}  - {{split: gone, path: forget10.json}}\n---\n")
    return folder


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub's data sets."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_parts_of_a_hub_data_set_go_by_name(hub_copy: Path, cache: Path) -> None:
    def read(*parts: str) -> tuple[str, int]:
        split, found = read_split(str(hub_copy), parts)
        return split, len(found)

    assert read("full") == ("train", 4)
    assert read("forget10") == ("train", 1)
    assert read("parts", "gone") == ("gone", 1)
    with pytest.raises(NotFoundError, match=r"no such split: .*parts: expected one of \['gone', 'kept'\]"):
        read("parts")
    with pytest.raises(NotFoundError, match="TOFU:forget01: BuilderConfig 'forget01' not found"):
        read("forget01")


def test_a_split_of_the_default_configuration_goes_by_its_name(tmp_path: Path, cache: Path) -> None:
    for name in ("train", "forget"):
        _lines(tmp_path / f"{name}.jsonl", rows(2))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.jsonl}\n"
        "  - {split: forget, path: forget.jsonl}\n---\n"
    )
    assert read_split(str(tmp_path), ["forget"]) == ("forget", rows(2))
    assert read_split(str(tmp_path), [])[0] == "train"


def test_a_hub_data_set_is_found_in_its_cache(hub_copy: Path, cache: Path) -> None:
    for name in ("full", "forget10"):
        datasets.load_dataset(str(hub_copy), name)
    (made,) = (folder for folder in cache.iterdir() if folder.is_dir())
    shutil.move(made, cache / "locuslab___tofu")
    found = read_rows("locuslab/TOFU:full")
    assert (found.source, found.split, list(found.rows)) == ("locuslab/TOFU:full", "train", rows(4))
    forget = beside(found.source, "forget10")
    assert forget == "locuslab/TOFU:forget10"
    assert list(read_rows(forget).rows) == rows(1)


def test_offline_a_hub_data_set_is_an_error_that_says_what_to_do(cache: Path) -> None:
    with pytest.raises(NotFoundError, match=r"can be loaded: locuslab/TOFU:full: Couldn't reach") as caught:
        read_rows("locuslab/TOFU:full")
    assert "FOLDER:NAME" in str(caught.value.hint)


MISSING: list[tuple[str, str, str]] = [
    ("datasets", "locuslab/TOFU:full", "data sets of the hub need the datasets library: locuslab/TOFU:full"),
    ("pyarrow", "some.parquet", "Parquet needs the pyarrow library: "),
]


@pytest.mark.parametrize(("library", "source", "message"), MISSING)
def test_a_library_that_is_not_there_is_named(
    library: str, source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _parquet(tmp_path / "some.parquet", ROWS)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(LmcleanerError, match=message) as caught:
        read_rows(source)
    assert (caught.value.exit_code, "lmcleaner[datasets]" in str(caught.value.hint)) == (10, True)
