"""`--K auto` ends a window where the deviation has settled, and nowhere else."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmcleaner.audit.check import audit_model
from lmcleaner.formats.errors import UsageError
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.settling import FIRST_LOOK_STEPS, Settling, marks
from lmcleaner.unlearning.windows import Window
from tiny_runs import TinyRun, parameters_in, record_tiny, same_bits, unlearn_tiny

LONG = Window(start=0, first=100, last=900, end=1000)


def _end(norm: Callable[[int], float], tolerance: float = 0.02, occurrences: tuple[int, ...] = (100,)) -> int | None:
    """Where a window ends if δ, carried for n steps, has the length norm(n), in a run with one learning rate."""
    settling = Settling(LONG, tolerance, np.ones(LONG.end))
    for step in range(LONG.first + 1, LONG.end + 1):
        last = max(occurrence for occurrence in occurrences if occurrence < step)
        if settling.look(step, [torch.full((3,), norm(step - LONG.first))], last):
            return step
    return None


def test_growth_in_proportion_to_the_steps_or_their_root_settles_only_where_little_is_to_come() -> None:
    """The last look at most is a tenth before the end."""
    for end in (_end(float), _end(lambda carried: carried**0.5)):
        assert end is None or end > LONG.end - (LONG.end - LONG.first) // 10


def test_what_stands_still_settles_at_the_second_look() -> None:
    assert _end(lambda _: 1.0) == LONG.first + 23


@pytest.mark.parametrize("tolerance", [0.2, 0.05, 0.001])
def test_a_window_ends_at_the_first_look_that_leaves_the_tolerance_to_come(tolerance: float) -> None:
    def norm(carried: int) -> float:
        return 1 - math.pow(0.5, carried / 20)

    def left_out(look: int, before: int) -> float:
        to_come = LONG.end - LONG.first - look
        return (1 - norm(before) / norm(look)) * math.sqrt(to_come / (look - before))

    end = _end(norm, tolerance)
    looks = sorted(step + 1 - LONG.first for step in marks(LONG, is_end_fixed=False))
    expected = next(look for before, look in pairwise(looks) if left_out(look, before) <= tolerance)
    assert end == LONG.first + expected


@pytest.mark.parametrize("falling", [False, True])
def test_what_is_to_come_goes_by_the_learning_rates_that_are_to_come(falling: bool) -> None:
    rates = np.linspace(1, 0, LONG.end) if falling else np.ones(LONG.end)
    window = Window(start=0, first=100, last=100, end=200)
    settling = Settling(window, None, rates)
    for step in range(101, 201):
        settling.look(step, [torch.full((3,), float(step))], 100)
    moved = 10 / 200
    assert settling.moved == pytest.approx(moved)
    assert settling.left_out == pytest.approx(moved * math.sqrt(rates[200:].sum() / rates[190:200].sum()))


def test_at_the_runs_end_nothing_is_left_out() -> None:
    settling = Settling(LONG, None, np.ones(LONG.end))
    for step in range(LONG.first + 1, LONG.end + 1):
        settling.look(step, [torch.full((3,), float(step))], 100)
    assert settling.left_out == 0


def test_an_occurrence_in_the_last_tenth_lets_no_window_end() -> None:
    end = _end(lambda _: 1.0, occurrences=(100, 121, 124, 127))
    assert end is not None
    assert end > LONG.first + 30


def test_a_deviation_of_zero_says_nothing() -> None:
    assert _end(lambda _: 0.0) is None


def test_marks_are_ten_or_those_before_each_look() -> None:
    assert len(marks(LONG, is_end_fixed=True)) == 10
    found = sorted(marks(LONG, is_end_fixed=False))
    assert found[0] == LONG.first + FIRST_LOOK_STEPS - 1
    assert found[-1] == LONG.end - 1
    carried = [step + 1 - LONG.first for step in found[:-1]]
    assert all(later == -(-earlier * 10 // 9) for earlier, later in pairwise(carried))


@pytest.fixture(scope="module")
def long_run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """120 steps of SGD, whose learning rate falls to zero."""
    folder = tmp_path_factory.mktemp("long")
    return record_tiny(base_model, folder, num_rows=480, epochs=1, optimizer="sgd", lr=0.05, checkpoint_every=30)


def _unlearned(run: TinyRun, output: Path, mode: str, **options: Any) -> dict[str, Any]:
    document = unlearn_tiny(run, output, mode, forget="steps:3,80", K="auto", oracle=True, **options).document
    assert document is not None
    return document


@pytest.mark.parametrize("mode", ["secant", "GGN"])
def test_windows_end_where_the_deviation_has_settled(mode: str, long_run: TinyRun, tmp_path: Path) -> None:
    document = _unlearned(long_run, tmp_path / "out", mode, settle_tolerance=0.9)
    first, second = document["windows"]
    assert first["tz"] == 3
    assert first["tau"] < 80
    assert 0 < first["left_out"] <= 0.9
    assert first["last_occurrence"] == 3
    assert second["tz"] == 80
    assert document["config"]["K"] == "auto"
    if mode == "secant":
        assert document["oracle"]["relative_error"] < 0.9
    if mode == "GGN":
        assert max(map(int, first["linearization_errors"])) == first["tau"] - 1
    assert audit_model(tmp_path / "out", long_run.log).checks["windows"] is None


@pytest.mark.parametrize(("place", "value"), [("tau", 47), ("tau", 3), ("tz", 4), ("K_used", 1)])
def test_an_audit_finds_windows_that_can_not_be(place: str, value: int, long_run: TinyRun, tmp_path: Path) -> None:
    _unlearned(long_run, tmp_path / "out", "secant", settle_tolerance=0.9)
    path = tmp_path / "out" / "audit.json"
    document = json.loads(path.read_text())
    document["windows"][0][place] = value
    path.write_text(json.dumps(document))
    assert audit_model(tmp_path / "out", long_run.log).checks["windows"] is not None


def test_what_never_settles_is_carried_to_the_end(long_run: TinyRun, tmp_path: Path) -> None:
    document = _unlearned(long_run, tmp_path / "auto", "secant", settle_tolerance=1e-9)
    unlearn_tiny(long_run, tmp_path / "all", "secant", forget="steps:3,80")
    assert [window["tau"] for window in document["windows"]] == [120]
    assert document["oracle"]["relative_error"] == 0
    assert same_bits(parameters_in(tmp_path / "auto"), parameters_in(tmp_path / "all"))


@pytest.mark.parametrize("options", [{"K": "often"}, {"K": -1}, {"settle_tolerance": 0}])
def test_other_words_and_tolerances_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"K|settle"):
        UnlearnOptions(forget="forget", output=tmp_path / "out", **options)
