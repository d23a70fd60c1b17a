"""A log behind a URL or in a zip file, and the commands that show and lower what a log takes."""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lmcleaner.cli.main import app
from lmcleaner.formats.store import open_store
from tiny_runs import TinyRun, parameters_in, same_bits


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _json(*arguments: object) -> Any:
    result = _run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def url(adamw_run: TinyRun) -> Iterator[str]:
    """A copy of the log in memory.

    Yields:
        Its URL.
    """
    place = f"memory://{uuid.uuid4().hex}/log"
    store = open_store(place, writable=True)
    for file in sorted(file for file in adamw_run.log.rglob("*") if file.is_file()):
        store.write(file.relative_to(adamw_run.log).as_posix(), [file.read_bytes()])
    yield place
    store.delete("")


@pytest.fixture
def archive(adamw_run: TinyRun, tmp_path: Path) -> str:
    """The log in a zip file."""
    return shutil.make_archive(str(tmp_path / "log"), "zip", adamw_run.log)


@pytest.mark.parametrize("kind", ["url", "archive"])
def test_a_log_elsewhere_is_read_like_one_in_a_folder(
    kind: str, adamw_run: TinyRun, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue(kind)
    assert _json("inspect", place)["root"] == adamw_run.open().root
    assert _json("inspect", place, "--verify")["is_sound"]
    outputs = {}
    for log in (str(adamw_run.log), place):
        outputs[log] = tmp_path / f"out-{len(outputs)}"
        made = _run("unlearn", log, "--forget", "forget", "--output", outputs[log], "--K", "all")
        assert made.exit_code in {0, 1}, made.output
    here, elsewhere = (parameters_in(folder) for folder in outputs.values())
    assert same_bits(here, elsewhere)
    document = json.loads((outputs[place] / "audit.json").read_text())
    assert document["config"]["log"] == (place if kind == "url" else str(Path(place).resolve()))
    assert _run("audit", outputs[place]).exit_code == 0


def test_a_log_in_a_zip_file_is_not_written(archive: str) -> None:
    before = Path(archive).read_bytes()
    refused = _run("prune", archive, "--keep-checkpoints-every", 8, "--apply")
    assert refused.exit_code == 2
    assert "zip" in refused.stderr
    assert Path(archive).read_bytes() == before


def test_a_run_is_recorded_behind_a_url(adamw_run: TinyRun, tmp_path: Path) -> None:
    place = f"memory://{uuid.uuid4().hex}/log"
    recorded = _run(
        "record",
        place,
        "--model",
        adamw_run.base,
        "--data",
        adamw_run.data,
        "--output",
        tmp_path / "model",
        "--epochs",
        1,
    )
    assert recorded.exit_code == 0, recorded.output
    assert _json("inspect", place, "--verify")["is_sound"]
    assert not list(tmp_path.glob("memory*"))


def test_sizes_add_up_to_what_the_log_takes(adamw_run: TinyRun) -> None:
    arrays = _json("inspect", adamw_run.log, "--sizes")["arrays"]
    files = [file for file in adamw_run.log.rglob("*") if file.is_file()]
    assert sum(array["num_bytes"] for array in arrays) == sum(file.stat().st_size for file in files)
    assert sum(array["num_files"] for array in arrays) == len(files)
    updates = next(array for array in arrays if array["name"] == "updates")
    assert 0 < updates["bytes_per_element"] < 4
    shown = _run("inspect", adamw_run.log, "--sizes").stdout
    assert all(array["name"] in shown for array in arrays)


def test_prune_shows_its_plan_and_does_it_only_when_told(adamw_run: TinyRun, tmp_path: Path) -> None:
    log = shutil.copytree(adamw_run.log, tmp_path / "log")
    root = adamw_run.open().root
    arguments = ("prune", log, "--drop-updates", "all", "--keep-checkpoints-every", 8)
    shown = _run(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "nothing was changed" in shown.stdout
    assert _json("inspect", log)["root"] == root
    done = _json(*arguments, "--apply")
    assert done["applied"]
    assert done["updates"] == []
    assert done["freed_bytes"]["updates"] > 0
    summary = _json("inspect", log, "--verify")
    assert summary["is_sound"]
    history = _json("inspect", log)["history"]
    assert [kind for kind, _ in history] == ["pruning"]


@pytest.mark.parametrize("mode", ["secant", "ggn"])
def test_a_pruned_log_gives_the_same_model(adamw_run: TinyRun, tmp_path: Path, mode: str) -> None:
    log = shutil.copytree(adamw_run.log, tmp_path / "log")
    assert _run("prune", log, "--drop-updates", "all", "--apply").exit_code == 0
    outputs = [tmp_path / "before", tmp_path / "after"]
    for place, output in zip((adamw_run.log, log), outputs, strict=True):
        arguments = ("--forget", "forget", "--output", output, "--K", "all", "--hessian-mode", mode)
        assert _run("unlearn", place, *arguments).exit_code in {0, 1}
    before, after = (parameters_in(output) for output in outputs)
    assert same_bits(before, after)


@pytest.mark.parametrize("text", ["5-", "a", "1-2-3", "9-5"])
def test_nonsense_to_drop_is_refused(adamw_run: TinyRun, text: str) -> None:
    refused = _run("prune", adamw_run.log, "--drop-updates", text)
    assert refused.exit_code == 2
    assert "--drop-updates: expected" in refused.stderr
