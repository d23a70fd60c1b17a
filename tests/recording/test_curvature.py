"""Recorded curvature: how it comes into a log, what `inspect` and `prune` make of it, and that a redaction drops it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor
from typer.testing import CliRunner, Result

from hostile_logs import attributes, forge
from lmcleaner.audit.check import audit_model
from lmcleaner.choices import CurvatureKind, HessianMode
from lmcleaner.cli.main import app
from lmcleaner.curvature.estimates import LowRank
from lmcleaner.curvature.segments import estimate_segment
from lmcleaner.curvature.stored import as_stored, load_estimate
from lmcleaner.formats.curvature import read_curvature
from lmcleaner.formats.errors import DamagedError, DivergedError, ExistsError, InsufficientLogError, UsageError
from lmcleaner.formats.pruning import Pruning, prune
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.steps import StepRecord
from lmcleaner.formats.verify import find_problems
from lmcleaner.inspection.sizes import sizes_of
from lmcleaner.recording.curvature import CurvatureOptions, record_curvature
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from tiny_runs import Recording, TinyRun, parameters_in, record_tiny, same_bits, unlearn_tiny

KINDS = [CurvatureKind.DIAG, CurvatureKind.DIAG_HESSIAN, CurvatureKind.LOW_RANK]


@pytest.fixture
def log(adamw_run: TinyRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adamw_run.log, tmp_path / "log"))


@pytest.fixture(scope="module")
def with_pairs(adamw_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(shutil.copytree(adamw_run.log, tmp_path_factory.mktemp("pairs") / "log"))
    record_curvature(path, CurvatureOptions(kind=CurvatureKind.LOW_RANK, rank=3))
    return path


def problems_of(log: Path) -> list[tuple[str, str, int | None]]:
    return [(p.kind, p.array, p.step) for p in find_problems(TrainingLog(log)) if p is not None]


def files_of(log: Path) -> dict[str, bytes]:
    return {str(file.relative_to(log)): file.read_bytes() for file in sorted(log.rglob("*")) if file.is_file()}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_gets_an_estimate_at_each_checkpoint_but_the_last_and_nothing_else_changes(
    kind: CurvatureKind, log: Path
) -> None:
    before, root = files_of(log), TrainingLog(log).root
    result = record_curvature(log, CurvatureOptions(kind=kind, rank=2))
    opened = TrainingLog(log)
    assert result.steps == tuple(sorted(opened.commit.curvature)) == opened.checkpoint_steps[:-1] == (0, 4, 8)
    assert result.products == {CurvatureKind.LOW_RANK: 9}.get(kind, 8) * 2 * 3
    assert problems_of(log) == []
    assert opened.root == result.log_root != root
    assert (opened.commit.history[-1].kind, opened.commit.history[-1].root_before) == ("curvature", root)
    changed = {name for name, content in files_of(log).items() if before.get(name) != content}
    assert changed - {"commit/zarr.json"} == {name for name in changed if "/curvature/" in name}
    names = {"values", "vectors"} if kind is CurvatureKind.LOW_RANK else {"diagonal"}
    assert set(read_curvature(opened, 4).arrays) == names


def test_record_does_the_same_when_the_training_is_over(base_model: Path, adamw_run: TinyRun, tmp_path: Path) -> None:
    made = record_tiny(base_model, tmp_path, curvature="low_rank", rank=2)
    added = Path(shutil.copytree(adamw_run.log, tmp_path / "added"))
    record_curvature(added, CurvatureOptions(kind=CurvatureKind.LOW_RANK, rank=2))
    assert made.open().commit.curvature == TrainingLog(added).commit.curvature != {}
    assert same_bits(parameters_in(made.trained), parameters_in(adamw_run.trained))


def test_a_zarr_reader_finds_the_eigenpairs(with_pairs: Path) -> None:
    group = with_pairs / "generation-0" / "curvature" / "00000004"
    vectors = np.asarray(zarr.open_array(group / "vectors", mode="r", zarr_format=3)[:])
    values = np.asarray(zarr.open_array(group / "values", mode="r", zarr_format=3)[:])
    np.testing.assert_array_equal(vectors, TrainingLog(with_pairs).curvature_array(4, "vectors"))
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-5)
    assert list(values) == sorted(values, reverse=True)
    assert values.min() > 0


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_estimate_comes_back_bit_for_bit(pairs: int, dtype: torch.dtype) -> None:
    estimate = LowRank(torch.rand(pairs, dtype=dtype), torch.rand(pairs, 7, dtype=dtype), 3.5)
    stored = as_stored(estimate, HessianMode.LOW_RANK, 2)
    assert stored.arrays["vectors"].tobytes() == estimate.vectors.numpy().tobytes()
    assert (stored.rank, stored.trace) == (2, 3.5)


def test_curvature_is_not_recorded_twice_but_after_it_was_dropped(log: Path) -> None:
    diag = CurvatureOptions(kind=CurvatureKind.DIAG)
    first = record_curvature(log, diag)
    with pytest.raises(ExistsError, match=r"holds curvature already: .*: diag") as caught:
        record_curvature(log, CurvatureOptions(kind=CurvatureKind.LOW_RANK))
    assert "--drop-curvature" in str(caught.value.hint)
    entries = TrainingLog(log).commit.curvature
    assert prune(log, Pruning(drop_curvature=True)).freed_bytes["curvature"] == first.num_bytes
    assert not list(log.rglob("curvature"))
    assert problems_of(log) == []
    record_curvature(log, diag)
    assert TrainingLog(log).commit.curvature == entries
    assert [change.kind for change in TrainingLog(log).commit.history] == ["curvature", "pruning", "curvature"]


def test_estimates_outlive_the_checkpoints_that_they_were_made_at(with_pairs: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(with_pairs, tmp_path / "log"))
    plan = prune(path, Pruning(keep_checkpoints_every=100))
    assert (plan.checkpoints, plan.curvature) == ((0, 10), (0, 4, 8))
    assert problems_of(path) == []
    assert load_estimate(TrainingLog(path), 4, 3, torch.device("cpu")).captured is not None


class Interrupting(Recording):
    """Ends everything with the fortieth product, when one estimate is written and the next is under way."""

    def advance(self) -> None:
        super().advance()
        if self.steps == 40:
            raise KeyboardInterrupt


def test_an_interrupted_estimation_leaves_the_log_as_it_was(log: Path) -> None:
    before = files_of(log)
    with pytest.raises(KeyboardInterrupt):
        record_curvature(log, CurvatureOptions(kind=CurvatureKind.DIAG), Interrupting())
    assert files_of(log) == before


def test_a_run_that_was_interrupted_gets_none(log: Path) -> None:
    commit = attributes(log, "commit")
    forge(log, commit=commit | {"finished": False})
    with pytest.raises(InsufficientLogError, match="was interrupted"):
        record_curvature(log, CurvatureOptions(kind=CurvatureKind.DIAG))


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_that_is_not_finite_is_an_error(kind: CurvatureKind, adamw_run: TinyRun) -> None:
    opened, replay = adamw_run.open(), adamw_run.replay_model()
    parameters = replay.load(opened.parameters(4))

    def overflowing(mode: HessianMode, step: StepRecord, vector: Sequence[Tensor]) -> list[Tensor]:
        return [part * 1e38 * 1e38 for part in vector]

    with pytest.raises(DivergedError, match=r"the curvature is not finite: .*: steps 4 to 7"):
        estimate_segment(opened, HessianMode(kind.value), 4, 8, parameters, 2, overflowing)


@pytest.mark.parametrize("options", [{"kind": "none"}, {"kind": "diag", "rank": 0}, {"kind": "kfac"}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CurvatureOptions(**options)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
@pytest.mark.parametrize("name", ["values", "vectors"])
def test_damage_is_named_and_never_used(damage: Any, name: str, with_pairs: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(with_pairs, tmp_path / "log"))
    damage(next(file for file in (path / f"generation-0/curvature/00000004/{name}/c").rglob("*") if file.is_file()))
    assert problems_of(path) == [("damaged", f"curvature/00000004/{name}", 4)]
    with pytest.raises(DamagedError, match=f"curvature/00000004/{name}, step 4"):
        load_estimate(TrainingLog(path), 4, 3, torch.device("cpu"))
    assert load_estimate(TrainingLog(path), 8, 3, torch.device("cpu")).trace > 0


IMPOSSIBLE: list[dict[str, Any]] = [
    {"rank": 2},
    {"pairs": 0},
    {"kind": "diag"},
    {"kind": "full"},
    {"rank": 65537},
    {"trace": "1"},
    {"comment": ""},
]


@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_a_record_that_says_what_cannot_be_is_refused(change: dict[str, Any], with_pairs: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(with_pairs, tmp_path / "log"))
    commit = attributes(path, "commit")
    commit["curvature"]["4"] |= change
    forge(path, commit=commit)
    with pytest.raises(DamagedError, match="curvature"):
        TrainingLog(path)


@pytest.mark.parametrize(("step", "becomes"), [("8", "10"), ("0", "1")])
def test_estimates_that_leave_steps_out_or_lie_behind_them_are_refused(
    step: str, becomes: str, with_pairs: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(with_pairs, tmp_path / "log"))
    commit = attributes(path, "commit")
    commit["curvature"][becomes] = commit["curvature"].pop(step)
    forge(path, commit=commit)
    with pytest.raises(DamagedError, match="expected steps from 0 to below 10"):
        TrainingLog(path)


def test_more_pairs_than_the_arrays_hold_take_no_memory(with_pairs: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(with_pairs, tmp_path / "log"))
    commit = attributes(path, "commit")
    commit["curvature"]["4"] |= {"rank": 65536, "pairs": 65536}
    forge(path, commit=commit)
    with pytest.raises(DamagedError, match="curvature/00000004/v"):
        load_estimate(TrainingLog(path), 4, 3, torch.device("cpu"))


def test_inspect_shows_what_it_is_and_what_it_takes(with_pairs: Path) -> None:
    shown = run("inspect", with_pairs)
    assert "low_rank, from steps 0, 4, 8" in shown.stdout
    sizes = sizes_of(TrainingLog(with_pairs))
    part = next(part for part in sizes.parts if part.name == "curvature")
    assert (part.unit, part.num_files > 0) == ("estimate", True)
    assert part.num_bytes == sum(array.num_bytes for array in sizes.arrays if array.name.startswith("curvature"))
    assert {array.name for array in sizes.arrays} >= {"curvature/00000000", "curvature/00000004", "curvature/00000008"}


def test_a_redaction_leaves_no_file_of_it_and_says_so(with_pairs: Path, adamw_run: TinyRun, tmp_path: Path) -> None:
    path = Path(shutil.copytree(with_pairs, tmp_path / "log"))
    held = [file.read_bytes() for file in (path / "generation-0" / "curvature").rglob("0") if file.is_file()]
    assert held
    copied = TinyRun(adamw_run.base, adamw_run.data, path, adamw_run.trained, adamw_run.options)
    reported = Recording()
    secant = HessianMode.SECANT
    options = UnlearnOptions(forget="forget", output=tmp_path / "out", K=None, hessian_mode=secant, redact=True)
    unlearn(copied.log, options, progress=reported)
    assert any("the recorded curvature goes too" in line for line in reported.lines)
    assert not list(path.rglob("curvature"))
    contents = [file.read_bytes() for file in path.rglob("*") if file.is_file()]
    assert not any(part in contents for part in held)
    assert TrainingLog(path).commit.curvature == {}
    record_curvature(path, CurvatureOptions(kind=CurvatureKind.DIAG))
    assert problems_of(path) == []


def test_an_audit_of_the_log_before_still_holds(log: Path, adamw_run: TinyRun, tmp_path: Path) -> None:
    copied = TinyRun(adamw_run.base, adamw_run.data, log, adamw_run.trained, adamw_run.options)
    unlearn_tiny(copied, tmp_path / "out")
    record_curvature(log, CurvatureOptions(kind=CurvatureKind.DIAG))
    report = audit_model(tmp_path / "out", log)
    assert report.passed
    assert report.unchecked == {}


def test_the_command_says_what_it_did(log: Path) -> None:
    done = run("curvature", log, "--kind", "low_rank", "--rank", 2, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["kind"], result["steps"], len(result["captured"])) == ("low_rank", [0, 4, 8], 3)
    again = run("curvature", log)
    assert again.exit_code == 11
    assert "hint: " in again.output
    shown = run("prune", log, "--drop-curvature")
    assert "would free: curvature" in shown.stdout
    assert "diag possible, diag_hessian possible, low_rank slower" in shown.stdout
    done = run("prune", log, "--drop-curvature", "--apply")
    assert "freed: curvature" in done.stdout
    assert run("curvature", log, "--kind", "diag").exit_code == 0
