"""A log gives back what was written, shows what was committed, and refuses what it can't read or must not remove."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from blake3 import blake3

from lmcleaner.formats.bits import BIT_DTYPES
from lmcleaner.formats.canonical import canonical_json, json_digest
from lmcleaner.formats.codecs import SPAN
from lmcleaner.formats.errors import (
    DamagedError,
    ExistsError,
    InsufficientLogError,
    NotFoundError,
    UsageError,
    VersionError,
)
from lmcleaner.formats.generation import FLUSH_STEPS
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.reconstruction import Reconstruction
from lmcleaner.formats.samples import Sample
from lmcleaner.formats.steps import Checkpoint, OptimizerVectors, StepRecord
from lmcleaner.formats.store import open_store
from lmcleaner.formats.verify import find_problems
from lmcleaner.formats.writer import LogWriter, write_commit

if TYPE_CHECKING:
    from tests.formats.conftest import Run


MakeRun = Callable[..., "Run"]
WriteRun = Callable[..., Path]
NUM_STEPS = FLUSH_STEPS + 3


@pytest.fixture(scope="module")
def run(make_run: MakeRun) -> Run:
    return make_run(NUM_STEPS)


@pytest.fixture(scope="module")
def path(run: Run, write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log that the tests of this file only read."""
    return write_run(tmp_path_factory.mktemp("logs") / "log", run)


@pytest.fixture
def log(path: Path) -> TrainingLog:
    return TrainingLog(path)


def plain(step: StepRecord) -> list[Any]:
    """A step as values that can be compared."""
    return [
        step.lr,
        step.gradient_norm,
        step.seconds,
        *([s.tokens.tolist(), s.labels.tolist()] for s in step.samples),
        *((m.starts, m.width, m.has_mask, m.denominator, m.loss, m.rng) for m in step.microbatches),
    ]


def plain_state(checkpoint: Checkpoint) -> list[Any]:
    """A checkpoint as values that can be compared, bit for bit."""
    state = checkpoint.optimizer
    arrays = {"parameters": checkpoint.parameters, "present": state.present, **state.vectors, **state.scalars}
    named = {name: (values.dtype, values.tobytes()) for name, values in arrays.items()}
    return [checkpoint.step, state.dtypes, sorted(state.vectors), sorted(state.scalars), named]


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the stored manifest of a log."""
    file = path / "zarr.json"
    document = json.loads(file.read_text())
    change(document["attributes"])
    file.write_bytes(canonical_json(document))


def test_the_manifest_is_read_back_equal(log: TrainingLog, run: Run) -> None:
    assert log.manifest == run.manifest
    assert log.manifest.digest == run.manifest.digest


def test_every_step_is_read_back_equal(log: TrainingLog, run: Run) -> None:
    assert log.num_steps == NUM_STEPS
    assert [plain(log.step(t)) for t in range(NUM_STEPS)] == [plain(step) for step in run.steps]


def test_a_run_holds_what_the_tests_here_rely_on(run: Run) -> None:
    microbatches = [m for step in run.steps for m in step.microbatches]
    assert {len(step.microbatches) for step in run.steps} == {1, 2, 3}
    assert {bool(m.rng) for m in microbatches} == {True, False}
    assert any(start > 0 for m in microbatches for start in m.starts)


def test_each_sample_is_stored_once(log: TrainingLog, run: Run) -> None:
    in_order = list(dict.fromkeys(sample.digest for step in run.steps for sample in step.samples))
    assert [digest.tobytes() for digest in log.table("samples/digest")] == in_order
    assert [log.sample(row).digest for row in range(len(in_order))] == in_order
    assert log.sample_rows == {digest: row for row, digest in enumerate(in_order)}


def test_every_occurrence_names_its_step(log: TrainingLog, run: Run) -> None:
    expected = [t for t, step in enumerate(run.steps) for _ in step.samples]
    assert log.occurrence_steps.tolist() == expected


def test_a_steps_loss_is_the_sum_over_its_microbatches_as_the_run_divided_it(log: TrainingLog, run: Run) -> None:
    expected = [sum(m.loss for m in step.microbatches) / run.manifest.loss_divisor for step in run.steps]
    assert log.table("steps/loss").tolist() == expected


def test_every_checkpoint_is_read_back_with_the_optimizers_state(log: TrainingLog, run: Run) -> None:
    assert log.checkpoint_steps == tuple(run.checkpoints)
    for step, checkpoint in run.checkpoints.items():
        assert plain_state(log.checkpoint(step)) == plain_state(checkpoint)
        np.testing.assert_array_equal(log.checkpoint_parameters(step), checkpoint.parameters)


def test_the_parameters_of_every_step_come_back_bit_for_bit(log: TrainingLog, run: Run) -> None:
    for step, expected in enumerate(run.parameters):
        np.testing.assert_array_equal(log.parameters(step), expected)
        assert log.parameters_digest(step) == blake3(expected.tobytes()).digest()


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_come_back_bit_for_bit(dtype: str, make_run: MakeRun, write_run: WriteRun, tmp_path: Path) -> None:
    run = make_run(4, dtype=dtype)
    log = TrainingLog(write_run(tmp_path / "log", run))
    for step, expected in enumerate(run.parameters):
        found = log.parameters(step)
        assert found.dtype == BIT_DTYPES[dtype]
        np.testing.assert_array_equal(found, expected)
    assert plain_state(log.checkpoint(4)) == plain_state(run.checkpoints[4])


def test_a_reconstruction_follows_the_run_from_any_step_in_place(log: TrainingLog, run: Run) -> None:
    found = log.reconstruct(5)
    bits = found.bits
    for step in range(5, 9):
        found.advance_to(step + 1)
        np.testing.assert_array_equal(bits, run.parameters[step + 1])


@pytest.mark.parametrize("cuts", [[], [1], [44, 48], [44, 44, 48], [0, 68]])
def test_a_reconstruction_takes_the_parameters_in_parts(log: TrainingLog, run: Run, cuts: list[int]) -> None:
    bits = run.parameters[3].copy()
    Reconstruction(log, 3, parts=np.split(bits, cuts)).advance_to(6)
    np.testing.assert_array_equal(bits, run.parameters[6])


def test_a_reconstruction_from_other_parameters_is_refused(log: TrainingLog, run: Run) -> None:
    with pytest.raises(DamagedError, match=r"updates, step 3: .* doesn't lead to the parameters of the run"):
        Reconstruction(log, 3, parts=[run.parameters[4].copy()]).advance_to(4)


def test_a_vector_longer_than_a_chunk_comes_back(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(1, dtype="bfloat16")
    entry = replace(run.manifest.parameters[0], shape=(SPAN + 5,), offset=0)
    before = np.zeros(SPAN + 5, np.uint16)
    after = before.copy()
    after[[0, SPAN - 1, SPAN, -1]] = [1, 2, 3, 4]
    nothing = OptimizerVectors(vectors={}, dtypes={}, scalars={}, present=np.array([False]))
    start = Checkpoint(step=0, parameters=before, optimizer=nothing)
    with LogWriter.create(tmp_path / "log", replace(run.manifest, parameters=(entry,)), start) as writer:
        writer.append(run.steps[0], after)
        writer.commit(finished=True)
    np.testing.assert_array_equal(TrainingLog(tmp_path / "log").parameters(1), after)


def test_a_sample_longer_than_a_table_chunk_comes_back(make_run: MakeRun, write_run: WriteRun, tmp_path: Path) -> None:
    run = make_run(2)
    tokens = np.arange((2 << 16) + 7, dtype=np.int32)
    microbatch = replace(
        run.steps[1].microbatches[0], samples=(Sample(tokens, -tokens),), starts=(3,), width=len(tokens) + 3
    )
    run = replace(run, steps=(run.steps[0], replace(run.steps[1], microbatches=(microbatch,))))
    found = TrainingLog(write_run(tmp_path / "log", run)).step(1)
    assert plain(found) == plain(run.steps[1])


def test_steps_after_the_last_commit_are_not_there(run: Run, tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "log", run.manifest, run.checkpoints[0])
    for number in range(FLUSH_STEPS + 2):
        writer.append(run.steps[number], run.parameters[number + 1])
    log = TrainingLog(tmp_path / "log")
    assert log.num_steps == FLUSH_STEPS
    assert plain(log.step(FLUSH_STEPS - 1)) == plain(run.steps[FLUSH_STEPS - 1])
    np.testing.assert_array_equal(log.parameters(FLUSH_STEPS), run.parameters[FLUSH_STEPS])
    with pytest.raises(NotFoundError, match=f"no such step: .* expected 0 to {FLUSH_STEPS - 1}, found {FLUSH_STEPS}"):
        log.step(FLUSH_STEPS)
    assert not any(find_problems(log))


def test_an_opened_log_stays_at_its_commit_while_the_run_goes_on(run: Run, tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "log", run.manifest, run.checkpoints[0])
    writer.append(run.steps[0], run.parameters[1])
    writer.commit()
    early = TrainingLog(tmp_path / "log")
    writer.append(run.steps[1], run.parameters[2])
    writer.commit()
    assert (early.num_steps, TrainingLog(tmp_path / "log").num_steps) == (1, 2)
    assert plain(early.step(0)) == plain(run.steps[0])
    np.testing.assert_array_equal(early.parameters(1), run.parameters[1])
    assert not any(find_problems(early))


def test_a_commit_says_whether_the_run_came_to_its_end(run: Run, log: TrainingLog, tmp_path: Path) -> None:
    LogWriter.create(tmp_path / "log", run.manifest, run.checkpoints[0])
    assert log.commit.finished
    assert not TrainingLog(tmp_path / "log").commit.finished


def test_a_log_without_updates_knows_the_checkpoints_only(
    make_run: MakeRun, write_run: WriteRun, tmp_path: Path
) -> None:
    run = make_run(5, updates="none")
    log = TrainingLog(write_run(tmp_path / "log", run))
    assert not log.has_updates
    assert not (tmp_path / "log" / "generation-0" / "updates").exists()
    np.testing.assert_array_equal(log.parameters(3), run.parameters[3])
    with pytest.raises(InsufficientLogError, match=r"doesn't hold the update: .* step 3") as error:
        log.reconstruct(3).advance_to(4)
    assert error.value.kind == "log-insufficient"
    with pytest.raises(InsufficientLogError):
        log.parameters(4)


@pytest.mark.parametrize("step", [-1, NUM_STEPS, NUM_STEPS + 1, 10**9])
def test_a_step_outside_is_not_found(log: TrainingLog, step: int) -> None:
    with pytest.raises(NotFoundError, match=f"no such step: .* expected 0 to {NUM_STEPS - 1}, found {step}") as error:
        log.step(step)
    assert error.value.kind == "not-found"


@pytest.mark.parametrize("step", ["3", 3.0, None])
def test_a_step_that_is_no_number_is_refused(log: TrainingLog, step: Any) -> None:
    for ask in (log.step, log.parameters):
        with pytest.raises(UsageError, match=f"a step: expected a whole number, found {step!r}"):
            ask(step)


@pytest.mark.parametrize("step", [-1, NUM_STEPS + 1])
def test_parameters_outside_are_not_found(log: TrainingLog, step: int) -> None:
    with pytest.raises(NotFoundError, match=f"no such step: .* expected 0 to {NUM_STEPS}, found {step}"):
        log.parameters(step)


def test_a_checkpoint_that_was_not_taken_is_not_found(log: TrainingLog) -> None:
    with pytest.raises(NotFoundError, match="no checkpoint of step 1: ") as error:
        log.checkpoint(1)
    assert error.value.kind == "not-found"


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_a_log_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match=f"no training log: {tmp_path}") as error:
        TrainingLog(tmp_path / name)
    assert isinstance(error.value, FileNotFoundError)
    assert error.value.hint


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_version_is_refused(path: Path, tmp_path: Path, version: object) -> None:
    copy = shutil.copytree(path, tmp_path / "log")
    edit_manifest(copy, lambda manifest: manifest.update(version=version))
    with pytest.raises(VersionError, match=f"unknown version .* expected 1, found {version!r}") as error:
        TrainingLog(copy)
    assert error.value.kind == "unsupported-version"


def test_another_zarr_group_is_no_log(tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "log"), attributes={"schema": "something else"}).create_group("commit")
    with pytest.raises(DamagedError, match=r"not a training log: .* found 'something else'"):
        TrainingLog(tmp_path / "log")


BROKEN_FIELDS: dict[str, Callable[[dict[str, Any]], object]] = {
    r"\$\.numerics\.threads": lambda m: m["numerics"].update(threads=0),
    r"\$\.parameters\[1\]\.shape\[0\]": lambda m: m["parameters"][1].update(shape=["4"]),
    r"\$\.model\.fingerprint": lambda m: m["model"].update(fingerprint="AB" * 32),
    r"\$\.max_grad_norm": lambda m: m.update(max_grad_norm=-1.0),
    r"\$\.updates": lambda m: m.update(updates="int3"),
    r"\$\.optimizer: 'groups' is a required property": lambda m: m["optimizer"].pop("groups"),
    r"\$: 'padding_token' is a required property": lambda m: m.pop("padding_token"),
}


@pytest.mark.parametrize("place", BROKEN_FIELDS)
def test_a_broken_field_of_the_manifest_is_named(path: Path, tmp_path: Path, place: str) -> None:
    copy = shutil.copytree(path, tmp_path / "log")
    edit_manifest(copy, BROKEN_FIELDS[place])
    with pytest.raises(DamagedError, match=f"manifest is damaged: .*{place}") as error:
        TrainingLog(copy)
    assert error.value.kind == "damaged"


def test_a_valid_but_changed_manifest_breaks_the_root(path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(path, tmp_path / "log")
    edit_manifest(copy, lambda manifest: manifest.update(max_grad_norm=5.0))
    with pytest.raises(DamagedError, match=r"commit: expected root [0-9a-f]{64}, found [0-9a-f]{64}"):
        TrainingLog(copy)


def test_fields_of_a_later_minor_version_are_read_over_and_kept(path: Path, tmp_path: Path, log: TrainingLog) -> None:
    copy = shutil.copytree(path, tmp_path / "log")
    edit_manifest(copy, lambda m: (m.update(later="field"), m["numerics"].update(later=1)))
    document = json.loads((copy / "zarr.json").read_text())["attributes"]
    write_commit(open_store(copy, writable=True), log.commit, json_digest(document))
    later = TrainingLog(copy)
    assert later.manifest == log.manifest
    assert later.root != log.root


def test_an_existing_log_is_not_overwritten_unasked(path: Path, run: Run, write_run: WriteRun, tmp_path: Path) -> None:
    copy = shutil.copytree(path, tmp_path / "log")
    with pytest.raises(ExistsError, match=f"exists already: {copy}") as error:
        write_run(copy, run)
    assert error.value.kind == "exists"
    assert TrainingLog(copy).num_steps == NUM_STEPS


def test_overwrite_replaces_a_log(path: Path, make_run: MakeRun, write_run: WriteRun, tmp_path: Path) -> None:
    copy = shutil.copytree(path, tmp_path / "log")
    write_run(copy, make_run(2, seed=1), overwrite=True)
    log = TrainingLog(copy)
    assert log.num_steps == 2
    assert not any(find_problems(log))
    assert not (copy / "generation-0" / "updates" / "c" / "1" / "0").exists()


def test_overwrite_leaves_a_folder_that_holds_no_log(run: Run, write_run: WriteRun, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExistsError, match="exists already"):
        write_run(tmp_path, run, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwrite_leaves_a_zarr_group_that_is_no_log(run: Run, write_run: WriteRun, tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "measurements"), attributes={"years": 3})
    with pytest.raises(ExistsError, match="exists already"):
        write_run(tmp_path / "measurements", run, overwrite=True)
    assert zarr.open_group(str(tmp_path / "measurements"), mode="r").attrs["years"] == 3


def changed_step(run: Run, **changes: Any) -> Run:
    """The run with other fields in its second step."""
    return replace(run, steps=(run.steps[0], replace(run.steps[1], **changes), *run.steps[2:]))


def changed_microbatch(run: Run, **changes: Any) -> Run:
    """The run with other fields in the first microbatch of its second step."""
    first, *others = run.steps[1].microbatches
    return changed_step(run, microbatches=(replace(first, **changes), *others))


def changed_state(run: Run, **changes: Any) -> Run:
    """The run with another optimizer's state in its last checkpoint."""
    last = run.checkpoints[3]
    return replace(run, checkpoints=run.checkpoints | {3: replace(last, optimizer=replace(last.optimizer, **changes))})


def another_sample(run: Run, tokens: int = 0, labels: int = 0) -> Run:
    """The run with one token or label of a sample moved."""
    first, *others = run.steps[1].microbatches[0].samples
    return changed_microbatch(run, samples=(Sample(first.tokens + tokens, first.labels + labels), *others))


def other_bits(run: Run) -> Run:
    """The run with one bit of θ[2] flipped, and of no checkpoint."""
    bits = run.parameters[2].copy()
    bits[-1] ^= 1
    return replace(run, parameters=(*run.parameters[:2], bits, run.parameters[3]))


@pytest.mark.parametrize("updates", ["lossless", "int8", "none"])
def test_a_checkpoint_of_other_parameters_than_the_step_led_to_is_found(
    updates: str, make_run: MakeRun, write_run: WriteRun, tmp_path: Path
) -> None:
    """Somebody changed θ behind the last step, and what was left was taken for the run's last state."""
    run = make_run(num_steps=3, updates=updates)
    last = run.checkpoints[3]
    bits = last.parameters.copy()
    bits[-1] ^= 1
    changed = replace(run, checkpoints=run.checkpoints | {3: replace(last, parameters=bits)})
    log = TrainingLog(write_run(tmp_path / "log", changed))
    problems = [problem for problem in find_problems(log) if problem is not None]
    assert [(problem.array, problem.message) for problem in problems][:1] == [
        ("steps/parameters_blake3", "expected the parameters that checkpoint 3 holds, found others")
    ]


CHANGES: dict[str, Callable[[Run], Run]] = {
    "a token": lambda run: another_sample(run, tokens=1),
    "a label": lambda run: another_sample(run, labels=1),
    "a start": lambda run: changed_microbatch(run, starts=tuple(s + 1 for s in run.steps[1].microbatches[0].starts)),
    "a width": lambda run: changed_microbatch(run, width=run.steps[1].microbatches[0].width + 1),
    "a mask": lambda run: changed_microbatch(run, has_mask=not run.steps[1].microbatches[0].has_mask),
    "a denominator": lambda run: changed_microbatch(run, denominator=0.5),
    "a loss": lambda run: changed_microbatch(run, loss=0.25),
    "a generator's state": lambda run: changed_microbatch(run, rng=bytes(24)),
    "a learning rate": lambda run: changed_step(run, lr=(run.steps[1].lr[0], 0.5)),
    "a gradient's norm": lambda run: changed_step(run, gradient_norm=0.5),
    "a duration": lambda run: changed_step(run, seconds=0.5),
    "the order of microbatches": lambda run: replace(run, steps=(run.steps[1], run.steps[0], run.steps[2])),
    "parameters between checkpoints": other_bits,
    "a moment": lambda run: changed_state(
        run, vectors={name: bits ^ bits.dtype.type(1) for name, bits in run.checkpoints[3].optimizer.vectors.items()}
    ),
    "a count of steps": lambda run: changed_state(run, scalars={"step": np.array([3.0, 0.0, 2.0])}),
    "a state that is missing": lambda run: changed_state(run, present=np.array([True, True, True])),
    "a moment's dtype": lambda run: changed_state(run, dtypes={"exp_avg": "float32", "exp_avg_sq": "float64"}),
    "a hyperparameter": lambda run: replace(run, manifest=replace(run.manifest, loss_divisor=3.0)),
}


@pytest.fixture(scope="module")
def short_run_root(make_run: MakeRun, write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    return TrainingLog(write_run(tmp_path_factory.mktemp("logs") / "short", make_run(3))).root


def test_the_same_run_has_the_same_root(
    short_run_root: str, make_run: MakeRun, write_run: WriteRun, tmp_path: Path
) -> None:
    assert TrainingLog(write_run(tmp_path / "again", make_run(3))).root == short_run_root


@pytest.mark.parametrize("change", CHANGES)
def test_the_root_changes_with(
    change: str, short_run_root: str, make_run: MakeRun, write_run: WriteRun, tmp_path: Path
) -> None:
    changed = write_run(tmp_path / "log", CHANGES[change](make_run(3)))
    assert TrainingLog(changed).root != short_run_root


def test_the_root_tells_a_finished_run_from_a_stopped_one(run: Run, tmp_path: Path) -> None:
    writer = LogWriter.create(tmp_path / "log", run.manifest, run.checkpoints[0])
    stopped = TrainingLog(tmp_path / "log").root
    writer.commit(finished=True)
    assert TrainingLog(tmp_path / "log").root != stopped


def test_sizes_by_part_add_up_to_the_folder(log: TrainingLog, path: Path) -> None:
    sizes = log.bytes_on_disk()
    assert sum(sizes.values()) == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert [part for part, size in sizes.items() if not size] == ["gradients", "curvature"]
