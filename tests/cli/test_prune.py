"""`prune`: the plan that it shows, and what a pruned log still gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from named_requests import find_forget_set
from torch import Tensor
from typer.testing import CliRunner, Result

from lmcleaner.choices import WRITTEN, HessianMode
from lmcleaner.cli.main import app
from lmcleaner.formats.canonical import array_digest
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.writer import LogWriter
from lmcleaner.training.models import load_base_model
from lmcleaner.training.numerics import replay_device, restored_numerics
from lmcleaner.training.replay import ReplayModel
from lmcleaner.training.vectors import bits_of
from lmcleaner.unlearning.plan import make_plan
from lmcleaner.unlearning.trajectory import open_trajectory
from lmcleaner.unlearning.windows import Window, replayed_steps, windows_in
from tiny_runs import TinyRun, parameters_in, record_tiny, same_bits

HOLE = ("--drop-updates", "5-31", "--keep-checkpoints-every", 12)  # of 40 steps with a checkpoint every four


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _json(*arguments: object) -> Any:
    result = _run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def long_run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Forty steps, whose updates lie in three objects."""
    return record_tiny(base_model, tmp_path_factory.mktemp("long"), epochs=8)


@pytest.fixture(scope="module")
def pruned(long_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same log with a hole in its updates, and three checkpoints between the first and the last."""
    log = Path(shutil.copytree(long_run.log, tmp_path_factory.mktemp("pruned") / "log"))
    assert _json("prune", log, *HOLE, "--apply")["updates"] == [[0, 16], [32, 40]]
    return log


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
        arguments = ("--forget", "forget", "--output", output, "--K", "all", "--hessian-mode", mode, "--no-ledger")
        assert _run("unlearn", place, *arguments).exit_code in {0, 1}
    before, after = (parameters_in(output) for output in outputs)
    assert same_bits(before, after)


def test_the_plan_tells_what_was_rounded_and_what_requests_will_cost(long_run: TinyRun) -> None:
    shown = _run("prune", long_run.log, *HOLE).stdout
    assert "updates that go: 16-31; asked for 5-31, and only whole objects go, of up to 16 steps" in shown
    assert "updates that stay: 0-15, 32-39" in shown
    assert "checkpoints that stay: 0, 12, 24, 36, 40" in shown
    assert "requests: " + ", ".join(f"{mode} slower" for mode in HessianMode) in shown
    assert "first occurrence in steps 4-11: starts from checkpoint 0, up to 8 more lead-in steps" in shown
    assert "all but secant replay θ before steps 17-23, 25-35: one more gradient a step" in shown
    assert "a window with a K below all ends up to 11 steps later" in shown
    assert "nothing was changed; --apply does it" in shown


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ((), "possible"),
        (("--drop-gradients",), "possible"),
        (("--keep-checkpoints-every", 20), "slower"),
    ],
)
def test_the_plan_tells_what_becomes_of_each_mode(options: tuple[object, ...], outcome: str, long_run: TinyRun) -> None:
    planned = _json("prune", long_run.log, *options)
    assert planned["requests"]["modes"] == {mode.value: outcome for mode in HessianMode}
    assert not planned["applied"]


def test_the_plan_explains_ranges_only_where_they_differ(long_run: TinyRun, pruned: Path) -> None:
    shown = _run("prune", long_run.log, "--drop-updates", "16-31").stdout
    assert "updates that go: 16-31\n" in shown
    again = _run("prune", pruned, "--drop-updates", "16-31").stdout
    assert "updates that go: none; the log holds none of steps 16-31\n" in again
    assert "there is nothing to remove" in again
    assert "--apply" not in again


def test_dropped_gradients_are_computed_again_by_fisher(base_model: Path, tmp_path: Path) -> None:
    log = record_tiny(base_model, tmp_path, gradients="lossless").log
    shown = _run("prune", log, "--drop-gradients").stdout
    assert "diag, diag_hessian, fisher, low_rank compute the gradients of steps 0-9 again: one gradient a step" in shown
    slower = _json("prune", log, "--drop-gradients")["requests"]["modes"]
    assert slower == {mode.value: "possible" for mode in HessianMode} | {mode.value: "slower" for mode in WRITTEN}
    assert _json("prune", log)["requests"]["recomputed"] == []


def test_a_pruned_log_says_what_it_kept(pruned: Path) -> None:
    shown = _run("inspect", pruned).stdout
    assert "updates of steps 0-15, 32-39" in shown
    assert "pruning on" in shown
    assert _json("inspect", pruned)["kept_updates"] == [[0, 16], [32, 40]]
    assert _json("inspect", pruned, "--verify")["is_sound"]


@pytest.mark.parametrize("forget", ["forget", "steps:27"])
@pytest.mark.parametrize("mode", ["secant", "ggn", "exact"])
def test_a_log_with_a_hole_gives_the_same_model(
    mode: str, forget: str, long_run: TinyRun, pruned: Path, tmp_path: Path
) -> None:
    models: list[dict[str, Tensor]] = []
    for log in (long_run.log, pruned):
        output = tmp_path / f"out-{len(models)}"
        arguments = ("--forget", forget, "--output", output, "--K", "all", "--hessian-mode", mode, "--no-ledger")
        assert _run("unlearn", log, *arguments).exit_code in {0, 1}
        models.append(parameters_in(output))
    assert same_bits(*models)


class CountingModel(ReplayModel):
    """Counts the gradients that it computes."""

    count = 0

    def gradient(self, *arguments: Any, **options: Any) -> Any:
        self.count += 1
        return super().gradient(*arguments, **options)


@pytest.mark.parametrize(("first", "end"), [(2, 40), (2, 14), (14, 30), (18, 19), (33, 40)])
def test_θ_is_replayed_exactly_where_it_cannot_be_read(first: int, end: int, pruned: Path) -> None:
    log = TrainingLog(pruned)
    replay = CountingModel(load_base_model(log.manifest), log.manifest, replay_device(log.manifest))
    window = Window(start=log.nearest_checkpoint(first), first=first, last=first, end=end)
    with restored_numerics(log.manifest.numerics):
        trajectory = open_trajectory(log, replay, window.start, end, HessianMode.GGN)
        for step in range(first, end + 1):
            found = trajectory.move_to(step)
            assert found is not None
            assert array_digest(bits_of(found)) == log.parameters_digest(step)
        trajectory.close()
    expected = replayed_steps(window, log.checkpoint_steps, log.readable_steps)
    forget_set = find_forget_set(log, f"steps:{first}", None, lambda: None)
    assert replay.count == expected == make_plan(log, forget_set, [window], HessianMode.GGN).replayed
    assert (expected > 0) == (end > 16 and first < 36)
    assert make_plan(log, forget_set, [window], HessianMode.SECANT).replayed == 0


def test_without_a_replay_θ_is_known_where_checkpoints_and_updates_lead(pruned: Path) -> None:
    log = TrainingLog(pruned)
    replay = ReplayModel(load_base_model(log.manifest), log.manifest, replay_device(log.manifest))
    trajectory = open_trajectory(log, replay, 0, log.num_steps, HessianMode.SECANT)
    known = set()
    for step in range(log.num_steps + 1):
        found = trajectory.move_to(step)
        if found is not None:
            known.add(step)
            assert array_digest(bits_of(found)) == log.parameters_digest(step)
    trajectory.close()
    assert known == {*range(17), 24, *range(36, 41)} == log.readable_steps


@pytest.mark.parametrize(("K", "end"), [(5, 8), (13, 16), (14, 24), (22, 36), (35, 38), (None, 40)])
def test_windows_end_where_a_pruned_log_has_θ(K: int | None, end: int, pruned: Path) -> None:  # noqa: N803
    assert windows_in(TrainingLog(pruned), [2], K) == (Window(start=0, first=2, last=2, end=end),)


def test_an_interrupted_log_is_refused(adamw_run: TinyRun, tmp_path: Path) -> None:
    log = Path(shutil.copytree(adamw_run.log, tmp_path / "log"))
    with LogWriter.resume(log) as writer:
        writer.commit()
    for arguments in ((), ("--apply",)):
        refused = _run("prune", log, "--keep-checkpoints-every", 8, *arguments)
        assert refused.exit_code == 2
        assert "would go on from what goes" in refused.stderr
        assert "--resume" in refused.stderr


@pytest.mark.parametrize("text", ["5-", "a", "1-2-3", "9-5"])
def test_nonsense_to_drop_is_refused(adamw_run: TinyRun, text: str) -> None:
    refused = _run("prune", adamw_run.log, "--drop-updates", text)
    assert refused.exit_code == 2
    assert "--drop-updates: expected" in refused.stderr
