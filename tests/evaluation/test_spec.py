"""Which rows a name, a YAML file or a folder means."""

from pathlib import Path

import pytest

from lmcleaner.data.rows import read_rows
from lmcleaner.evaluation.scores import Part
from lmcleaner.evaluation.spec import named_sources
from lmcleaner.formats.errors import NotFoundError, UsageError
from tiny_runs import Recording, rows, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("full", "forget10_perturbed", "retain_perturbed", "holdout10"):
        write_rows(tmp_path / f"{name}.jsonl", rows(2))
    return tmp_path


def test_tofu_lies_beside_the_recorded_data(folder: Path) -> None:
    progress = Recording()
    found = named_sources("tofu:forget10", str(folder / "full.jsonl"), progress)
    assert found == {
        Part.FORGET: str(folder / "forget10_perturbed.jsonl"),
        Part.RETAIN: str(folder / "retain_perturbed.jsonl"),
        Part.HOLDOUT: str(folder / "holdout10.jsonl"),
    }
    assert progress.lines == ["not evaluated, for there are no such rows: real_authors, world_facts"]


@pytest.mark.parametrize("recorded", ["locuslab/TOFU:full", ""])
def test_tofu_of_the_hub(recorded: str) -> None:
    found = named_sources("tofu:forget05", recorded, Recording())
    assert found == {
        Part.FORGET: "locuslab/TOFU:forget05_perturbed",
        Part.RETAIN: "locuslab/TOFU:retain_perturbed",
        Part.HOLDOUT: "locuslab/TOFU:holdout05",
        Part.REAL_AUTHORS: "locuslab/TOFU:real_authors_perturbed",
        Part.WORLD_FACTS: "locuslab/TOFU:world_facts_perturbed",
    }


def test_a_yaml_file_names_rows_from_where_it_lies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "evaluation" / "rows.yaml"
    path.parent.mkdir()
    path.write_text("forget: ../full.jsonl\nretain: ..:retain_perturbed\nholdout: locuslab/TOFU:holdout10\n")
    monkeypatch.chdir("/")
    found = named_sources(str(path), "", Recording())
    assert found[Part.HOLDOUT] == "locuslab/TOFU:holdout10"
    assert read_rows(found[Part.FORGET]).source == str(folder / "full.jsonl")
    assert read_rows(found[Part.RETAIN]).source == str(folder / "retain_perturbed.jsonl")


def test_a_folder_has_a_file_for_each_part(tmp_path: Path) -> None:
    write_rows(tmp_path / "forget.jsonl", rows(1))
    write_rows(tmp_path / "retain.json", rows(1))
    found = named_sources(str(tmp_path), "", Recording())
    assert found == {Part.FORGET: str(tmp_path / "forget.jsonl"), Part.RETAIN: str(tmp_path / "retain.json")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("forgotten: rows.jsonl", r"unknown parts: .*found \['forgotten'\]"),
        ("- forget", "not a list of parts"),
        ("forget: 3", "not a list of parts"),
        ("forget: [", "not YAML"),
    ],
)
def test_a_yaml_file_of_something_else_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text(content)
    with pytest.raises(UsageError, match=message):
        named_sources(str(tmp_path / "rows.yaml"), "", Recording())


def test_without_rows_to_forget_there_is_nothing_to_show(tmp_path: Path) -> None:
    write_rows(tmp_path / "retain.jsonl", rows(1))
    with pytest.raises(NotFoundError, match="no rows to forget"):
        named_sources(str(tmp_path), "", Recording())
    with pytest.raises(NotFoundError, match="nothing to evaluate on: tofu:forget"):
        named_sources("tofu:forget", "", Recording())
