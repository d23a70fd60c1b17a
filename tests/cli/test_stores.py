"""A log behind a URL or in a zip file, and the command that shows what a log takes."""

import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lmcleaner import HessianMode, TrainingLog, UnlearnOptions, audit_model, record, summarize, unlearn, verify
from lmcleaner.cli.main import app
from lmcleaner.formats.pruning import Pruning, prune
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
    outputs: dict[str, Path] = {}
    for log in (str(adamw_run.log), place):
        outputs[log] = tmp_path / f"out-{len(outputs)}"
        options = ("--output", outputs[log], "--K", "all", "--no-ledger")
        made = _run("unlearn", log, "--forget", "forget", *options)
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
    options = ("--model", adamw_run.base, "--data", adamw_run.data, "--output", tmp_path / "model", "--epochs", 1)
    recorded = _run("record", place, *options)
    assert recorded.exit_code == 0, recorded.output
    assert _json("inspect", place, "--verify")["is_sound"]
    assert not list(tmp_path.glob("memory*"))


def test_the_functions_take_a_url_as_well(adamw_run: TinyRun, tmp_path: Path) -> None:
    place = f"memory://{uuid.uuid4().hex}/log"
    record(place, replace(adamw_run.options, output=tmp_path / "trained"))
    log = TrainingLog(place)
    assert summarize(log).log == place
    assert log.parameters_digest(log.num_steps) == adamw_run.open().parameters_digest(log.num_steps)
    assert verify(log, replay_steps=2).is_sound
    options = UnlearnOptions(forget="forget", output=tmp_path / "out", K=None, hessian_mode=HessianMode.SECANT)
    result = unlearn(place, options)
    assert result.is_good
    assert result.document is not None
    assert result.document["config"]["log"] == place
    assert audit_model(tmp_path / "out", place).passed
    prune(place, Pruning(drop_updates=((0, 10),), keep_checkpoints_every=100))
    assert TrainingLog(place).checkpoint_steps == (0, 10)
    assert verify(TrainingLog(place)).problems == []


def test_sizes_add_up_to_what_the_log_takes(adamw_run: TinyRun, tmp_path: Path) -> None:
    log = Path(shutil.copytree(adamw_run.log, tmp_path / "log"))
    (log / "generation-0" / "updates" / "left.tmp").write_bytes(b"half")
    sizes = _json("inspect", log, "--sizes")
    files = [file for file in log.rglob("*") if file.is_file()]
    for grouping in ("parts", "arrays"):
        assert sum(entry["num_bytes"] for entry in sizes[grouping]) == sum(file.stat().st_size for file in files)
        assert sum(entry["num_files"] for entry in sizes[grouping]) == len(files)
    updates = next(array for array in sizes["arrays"] if array["name"] == "updates")
    assert 0 < updates["bytes_per_element"] < 4
    parts = {part["name"]: part for part in sizes["parts"]}
    assert parts["checkpoints"]["bytes_per_unit"] == parts["checkpoints"]["num_bytes"] / 4
    assert parts["bookkeeping"]["unit"] == "microbatch"
    assert parts["updates"]["bytes_per_unit"] == pytest.approx(updates["bytes_per_element"], rel=0.01)
    assert parts["gradients"]["bytes_per_unit"] is None
    assert sizes["leftovers"] == [{"key": "generation-0/updates/left.tmp", "num_bytes": 4}]
    shown = _run("inspect", log, "--sizes").stdout
    assert all(array["name"] in shown for array in sizes["arrays"])
    assert "leftover: generation-0/updates/left.tmp (4 B)" in shown
