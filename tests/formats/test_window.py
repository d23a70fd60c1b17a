"""A stretch of a log, streamed: named parameters, updates and gradients, read ahead; errors name the place."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lmcleaner.formats.bits import BIT_DTYPES, Bits
from lmcleaner.formats.codecs import SPAN
from lmcleaner.formats.errors import DamagedError, InsufficientLogError, NotFoundError
from lmcleaner.formats.manifest import Manifest, ParameterEntry
from lmcleaner.formats.prefetch import ahead
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.reconstruction import Reconstruction
from lmcleaner.formats.steps import Checkpoint, OptimizerVectors
from lmcleaner.formats.verify import find_problems
from lmcleaner.formats.window import float_values
from lmcleaner.formats.writer import LogWriter

if TYPE_CHECKING:
    from tests.formats.conftest import Run

MakeRun = Callable[..., "Run"]
WriteRun = Callable[..., Path]
NUM_STEPS = 8  # with checkpoints before 0, 3, 6 and 8


@pytest.fixture(scope="module")
def run(make_run: MakeRun) -> Run:
    return make_run(NUM_STEPS, gradients="lossless")


@pytest.fixture(scope="module")
def path(run: Run, write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("logs") / "log", run)


@pytest.fixture
def log(path: Path) -> TrainingLog:
    return TrainingLog(path)


def named(manifest: Manifest, vector: NDArray[Any], names: Sequence[str] | None = None) -> dict[str, Any]:
    """Cuts a vector into its parameters."""
    entries = {entry.name: entry for entry in manifest.parameters}
    return {
        name: vector[entries[name].offset :][: entries[name].num_elements].reshape(entries[name].shape).tolist()
        for name in names or entries
    }


def plain(values: Any) -> Any:
    """Name -> numbers, or None."""
    return None if values is None else {name: array.tolist() for name, array in values.items()}


def prefetch_threads() -> int:
    return sum(thread.name == "lmcleaner-prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("names", [["embedding"], ["norm"], ["head", "embedding"], ["embedding", "norm", "head"]])
def test_named_parameters_are_those_of_the_run(log: TrainingLog, run: Run, names: list[str]) -> None:
    for step, vector in enumerate(run.parameters):
        assert plain(log.named_parameters(step, names)) == named(run.manifest, vector, names)


@pytest.mark.parametrize(("start", "stop"), [(0, NUM_STEPS + 1), (2, 7), (3, 4), (NUM_STEPS, NUM_STEPS + 1)])
@pytest.mark.parametrize("names", [None, ["norm"], ["head", "embedding"]])
def test_a_window_streams_the_parameters_of_its_steps(
    log: TrainingLog, run: Run, start: int, stop: int, names: list[str] | None
) -> None:
    steps = [(found.step, plain(found.parameters)) for found in log.window(start, stop, names=names)]
    assert steps == [(t, named(run.manifest, run.parameters[t], names)) for t in range(start, stop)]


@pytest.mark.parametrize(("start", "stop"), [(0, NUM_STEPS), (2, 7), (NUM_STEPS - 1, NUM_STEPS)])
@pytest.mark.parametrize("names", [None, ["norm"]])
def test_a_window_gives_updates_and_gradients_of_its_steps(
    make_run: MakeRun, write_run: WriteRun, tmp_path: Path, start: int, stop: int, names: list[str] | None
) -> None:
    random = make_run(NUM_STEPS, gradients="lossless")
    vectors = tuple(gradient.copy() for gradient in make_run(NUM_STEPS + 1, seed=3, gradients="lossless").gradients)
    states = {t: replace(state, parameters=vectors[t]) for t, state in random.checkpoints.items()}
    run = replace(random, parameters=vectors, checkpoints=states)  # finite numbers, whose differences can be compared
    log = TrainingLog(write_run(tmp_path / "log", run))
    for found in log.window(start, stop, names=names, updates=True, gradients=True):
        before, after = (vectors[found.step + n].view(np.float32) for n in (0, 1))
        assert plain(found.parameters) == named(run.manifest, vectors[found.step], names)
        assert plain(found.update) == named(run.manifest, after - before, names)
        assert plain(found.gradient) == named(run.manifest, run.gradients[found.step], names)
        start += 1
    assert start == stop


@pytest.mark.parametrize("codec", ["lossless", "int8", "int4"])
def test_a_gradient_is_as_close_as_its_codec_has_it(
    make_run: MakeRun, write_run: WriteRun, tmp_path: Path, codec: str
) -> None:
    run = make_run(4, gradients=codec)
    log = TrainingLog(write_run(tmp_path / "log", run))
    levels = {"lossless": np.inf, "int8": 127, "int4": 7}[codec]
    for step, gradient in enumerate(run.gradients):
        expected, found = gradient.view(np.float32), log.gradient(step).view(np.float32)
        assert np.abs(found - expected).max() <= np.abs(expected).max() / levels * 0.501


def test_a_window_without_an_update_doesnt_ask_for_the_step_behind(log: TrainingLog) -> None:
    with pytest.raises(NotFoundError, match=f"no such step: .* expected 0 to {NUM_STEPS - 1}, found {NUM_STEPS}"):
        log.window(0, NUM_STEPS + 1, updates=True)
    with pytest.raises(NotFoundError, match=f"expected 0 to {NUM_STEPS}, found {NUM_STEPS + 1}"):
        log.window(0, NUM_STEPS + 2)


def test_names_that_the_model_doesnt_have_are_not_found(log: TrainingLog) -> None:
    with pytest.raises(NotFoundError, match="no such parameter: tail: the log holds 3"):
        log.named_parameters(1, ["head", "tail"])
    with pytest.raises(NotFoundError, match="no such parameter: tail"):
        log.window(0, 2, names=["tail"])


def test_a_window_of_gradients_needs_gradients(make_run: MakeRun, write_run: WriteRun, tmp_path: Path) -> None:
    log = TrainingLog(write_run(tmp_path / "log", make_run(3)))
    with pytest.raises(InsufficientLogError, match="the log holds no gradients"):
        list(log.window(0, 2, gradients=True))


def test_a_window_needs_the_updates_within_it(make_run: MakeRun, write_run: WriteRun, tmp_path: Path) -> None:
    log = TrainingLog(write_run(tmp_path / "log", make_run(5, updates="none")))
    assert [found.step for found in log.window(3, 4)] == [3]
    with pytest.raises(InsufficientLogError, match=r"doesn't hold the update: .* step 3"):
        list(log.window(3, 5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("updates", ["int8", "int4"])
def test_lossy_updates_are_exact_behind_each_correction_and_within_the_bound_before(
    make_run: MakeRun, write_run: WriteRun, tmp_path: Path, updates: str, dtype: str
) -> None:
    run = make_run(NUM_STEPS, updates=updates, dtype=dtype)
    log = TrainingLog(write_run(tmp_path / "log", run))
    assert log.commit.corrections == (3, 6, NUM_STEPS)
    rounding = {"float32": 2.0**-24, "bfloat16": 2.0**-8 + 2.0**-23, "float64": 2.0**-53}[dtype]
    levels = {"int8": 127, "int4": 7}[updates]
    before = float_values(run.parameters[0], dtype)
    for found, expected in zip(log.window(0, NUM_STEPS + 1), run.parameters, strict=True):
        reconstructed = float_values(np.concatenate([bits.reshape(-1) for bits in found.parameters.values()]), dtype)
        exact = float_values(expected, dtype)
        scale = np.abs(exact - before).max() / levels
        bound = scale * (0.5 + 2.0**-15) * (1 + 2.0**-20) + rounding * np.abs(reconstructed)
        assert (np.abs(reconstructed - exact) <= bound).all()
        if found.step in {0, 3, 6, NUM_STEPS}:
            np.testing.assert_array_equal(reconstructed, exact)
        before = reconstructed


@pytest.mark.parametrize("start", [0, 3, 6])
def test_a_reconstruction_is_the_same_wherever_it_begins(
    make_run: MakeRun, write_run: WriteRun, tmp_path: Path, start: int
) -> None:
    log = TrainingLog(write_run(tmp_path / "log", make_run(NUM_STEPS, updates="int4")))
    through = log.reconstruct(start)
    for step in range(start, NUM_STEPS + 1):
        through.advance_to(step)
        np.testing.assert_array_equal(through.bits, log.reconstruction(step))


@pytest.mark.parametrize("horizon", [0, 2, 5, NUM_STEPS])
@pytest.mark.parametrize("moves", [[1, 2, 3, 8], [4, 4, 7], [8]])
def test_reading_ahead_up_to_a_horizon_changes_nothing(
    log: TrainingLog, run: Run, horizon: int, moves: list[int]
) -> None:
    found = Reconstruction(log, 0, horizon=horizon)
    for step in moves:
        found.advance_to(step)
        np.testing.assert_array_equal(found.bits, run.parameters[step])
        assert prefetch_threads() <= (step < horizon)
    found.close()
    assert prefetch_threads() == 0


def test_reading_ahead_ends_when_it_is_closed_and_begins_anew(log: TrainingLog, run: Run) -> None:
    found = Reconstruction(log, 0, horizon=NUM_STEPS)
    found.advance_to(1)
    assert prefetch_threads() == 1  # at work on what nobody asked for yet
    found.close()
    assert prefetch_threads() == 0
    found.advance_to(5)
    np.testing.assert_array_equal(found.bits, run.parameters[5])
    found.close()


def test_reading_ahead_names_what_is_damaged_when_it_is_needed(path: Path, run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(path, tmp_path / "log"))
    shard = next(file for file in (copy / "generation-0" / "updates" / "c").rglob("*") if file.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    log = TrainingLog(copy)
    damaged = next(problem.step for problem in find_problems(log) if problem is not None and problem.step is not None)
    found = Reconstruction(log, 0, horizon=NUM_STEPS)
    for step in range(damaged + 1):
        found.advance_to(step)
        np.testing.assert_array_equal(found.bits, run.parameters[step])
    with pytest.raises(DamagedError, match=f"updates, step {damaged}"):
        found.advance_to(damaged + 1)
    assert prefetch_threads() == 0


def test_reading_ahead_stops_where_the_log_holds_no_more(
    make_run: MakeRun, write_run: WriteRun, tmp_path: Path
) -> None:
    log = TrainingLog(write_run(tmp_path / "log", make_run(4, updates="none")))
    found = Reconstruction(log, 0, horizon=4)
    with pytest.raises(InsufficientLogError, match="step 0"):
        found.advance_to(1)
    assert prefetch_threads() == 0


def write_two_spans(run: Run, path: Path) -> tuple[Path, list[Bits]]:
    """A log of two steps whose second parameter lies across two spans; its path and θ."""
    sizes = {"first": SPAN - 3, "across": 10, "last": 7}
    offsets = [0, SPAN - 3, SPAN + 7]
    entries = tuple(
        ParameterEntry(name=name, shape=(size,), offset=offset, group=0, index=index)
        for index, ((name, size), offset) in enumerate(zip(sizes.items(), offsets, strict=True))
    )
    rng = np.random.default_rng(0)
    vectors = [np.frombuffer(rng.bytes(2 * (SPAN + 14)), BIT_DTYPES["bfloat16"]) for _ in range(3)]
    nothing = OptimizerVectors(vectors={}, dtypes={}, scalars={}, present=np.zeros(3, np.bool_))
    start = Checkpoint(step=0, parameters=vectors[0].copy(), optimizer=nothing)
    with LogWriter.create(path, replace(run.manifest, parameters=entries, gradients="none"), start) as writer:
        for step, after in zip(run.steps, vectors[1:], strict=False):
            writer.append(step, after.copy())
        writer.commit(finished=True)
    return path, vectors


def test_named_parameters_read_no_span_but_their_own(make_run: MakeRun, tmp_path: Path) -> None:
    path, vectors = write_two_spans(make_run(2, dtype="bfloat16"), tmp_path / "log")
    log = TrainingLog(path)
    for names in (["first"], ["across"], ["last"], ["last", "first"], ["first", "across", "last"]):
        for step, vector in enumerate(vectors):
            assert plain(log.named_parameters(step, names)) == named(log.manifest, vector, names)
    shard = path / "generation-0" / "checkpoints" / "00000000" / "parameters" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1  # in the first of the two chunks
    shard.write_bytes(content)
    assert plain(log.named_parameters(2, ["last"])) == named(log.manifest, vectors[2], ["last"])
    for name in ("first", "across"):
        with pytest.raises(DamagedError, match="checkpoints/00000000/parameters, step 0: "):
            log.named_parameters(2, [name])


def damage_update(log: Path, copy: Path) -> Path:
    """A copy of a log whose updates can't be read."""
    shutil.copytree(log, copy)
    shard = copy / "generation-0" / "updates" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)  # the chunks of the first steps, not the index
    shard.write_bytes(content)
    return copy


def test_an_error_of_the_thread_that_reads_ahead_comes_through_with_its_place(path: Path, tmp_path: Path) -> None:
    log = TrainingLog(damage_update(path, tmp_path / "log"))
    window = log.window(0, 4)
    assert next(window).step == 0
    with pytest.raises(DamagedError, match=r"updates, step 0: can't be read \(the chunk's checksum") as error:
        next(window)
    assert error.value.kind == "damaged"
    assert prefetch_threads() == 0


def test_the_thread_that_reads_ahead_ends_with_the_window(log: TrainingLog) -> None:
    window = log.window(0, NUM_STEPS)
    assert [next(window).step, next(window).step] == [0, 1]
    assert prefetch_threads() == 1
    window.close()  # type: ignore[attr-defined]
    assert prefetch_threads() == 0


def test_the_thread_that_reads_ahead_ends_with_an_error_of_the_caller(log: TrainingLog) -> None:
    def failing() -> None:
        for found in log.window(0, NUM_STEPS):
            assert found.step < 2

    with pytest.raises(AssertionError):
        failing()
    assert prefetch_threads() == 0


def numbers(made: list[int]) -> Iterator[int]:
    """Counts, and notes how far it got.

    Yields:
        0, 1, 2 and so on.
    """
    for number in range(1000):
        made.append(number)
        yield number


def test_reading_ahead_keeps_the_order_and_stays_within_its_bound() -> None:
    made: list[int] = []
    items = ahead(numbers(made), 3)
    for expected in range(20):
        assert next(items) == expected
        assert len(made) <= expected + 1 + 3 + 1  # the one that was given, those in line, and the one that waits
    items.close()
    assert prefetch_threads() == 0
    assert len(made) < 30


def test_an_iterator_that_isnt_started_has_no_thread() -> None:
    items = ahead(numbers([]), 3)
    items.close()
    assert prefetch_threads() == 0


def test_an_error_comes_after_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("gone")

    items = ahead(failing(), 2)
    assert next(items) == 1
    with pytest.raises(KeyError, match="gone"):
        next(items)
    assert prefetch_threads() == 0
