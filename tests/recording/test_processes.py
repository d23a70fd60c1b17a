"""Two processes that train together make one log, and one process replays it and unlearns by it."""

import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from two_processes import bytes_of, in_processes

from lmcleaner.audit.history import tombstones
from lmcleaner.choices import HessianMode
from lmcleaner.curvature.linearized import curvature_product, predicted_gradient
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.reconstruction import AHEAD
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.watch import Watch
from lmcleaner.training.memory import peak_of
from lmcleaner.training.replay import open_replay
from lmcleaner.training.vectors import distance, global_norm
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.planning import plan_request
from lmcleaner.unlearning.run import unlearn
from tiny_runs import parameters_in, write_base_model

STEPS, ROWS, LENGTH, PADDING, MAX_NORM = 4, 3, 8, 2, 0.5
Place = tuple[int, int, int, int]  # step, microbatch, rank, row
FORGOTTEN: tuple[Place, ...] = ((0, 0, 0, 1), (1, 0, 1, 0), (1, 0, 1, 2), (3, 0, 0, 0))
NOBODY: tuple[Place, ...] = ()

# How a loop accumulates: microbatches of a step, and whether it averages the gradients after each of them.
LOOPS = {"plain": (1, True), "no_sync": (3, False), "averaged each time": (3, True)}


def microbatch(step: int, number: int, rank: int) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask of rows of different lengths."""
    generator = torch.Generator().manual_seed(step * 100 + number * 10 + rank)
    tokens = torch.randint(3, 20, (ROWS, LENGTH), generator=generator)
    lengths = torch.randint(4, LENGTH + 1, (ROWS, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    return tokens.masked_fill(mask == 0, PADDING), mask


def digests() -> str:
    """The forgotten rows, by their content."""
    found = []
    for step, number, rank, row in FORGOTTEN:
        tokens, mask = microbatch(step, number, rank)
        content = tokens[row, : int(mask[row].sum())].int().numpy()
        found.append(Sample(content, content).digest.hex())
    return ",".join(found)


def start(base: Path) -> tuple[DistributedDataParallel, torch.optim.Optimizer]:
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    model = AutoModelForCausalLM.from_pretrained(base).train()
    return DistributedDataParallel(model), torch.optim.AdamW(model.parameters(), lr=1e-2)


def take_steps(model: DistributedDataParallel, optimizer: Any, loop: str, forgotten: Iterable[Place] = ()) -> None:
    count, averages_each = LOOPS[loop]
    rank, gone = dist.get_rank(), set(forgotten)
    for step in range(STEPS):
        for number in range(count):
            tokens, mask = microbatch(step, number, rank)
            labels = tokens.masked_fill(mask == 0, IGNORED_LABEL)
            for row in range(ROWS):
                if (step, number, rank, row) in gone:
                    labels[row] = IGNORED_LABEL
            with nullcontext() if averages_each or number == count - 1 else model.no_sync():
                items = mask[:, 1:].sum()
                output = model(input_ids=tokens, attention_mask=mask, labels=labels, num_items_in_batch=items)
                (output.loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()


def plain(base: Path, output: Path, loop: str, forgotten: tuple[Place, ...]) -> None:
    model, optimizer = start(base)
    take_steps(model, optimizer, loop, forgotten)
    save(model, output)


def watched(base: Path, folder: Path, loop: str) -> None:
    with Watch(folder / "log", WatchOptions(checkpoint_every=2, updates="lossless", gradients="lossless")):
        model, optimizer = start(base)
        take_steps(model, optimizer, loop)
    save(model, folder / "recorded")


def told(base: Path, folder: Path, loop: str) -> None:
    """The same run, by a recorder that is told of the settings."""
    model, optimizer = start(base)
    description = RunDescription(
        model_source=str(base), max_grad_norm=MAX_NORM, loss_divisor=LOOPS[loop][0], padding_token=PADDING,
        checkpoint_every=2, gradients="lossless",
    )  # fmt: skip
    with Recorder(folder / "told", model, optimizer, description):
        take_steps(model, optimizer, loop)


def save(model: DistributedDataParallel, output: Path) -> None:
    if dist.get_rank() == 0:
        model.module.save_pretrained(output)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_model(tmp_path_factory.mktemp("base"), dropout=0.1)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that draws no random numbers."""
    folder = tmp_path_factory.mktemp("steady")
    in_processes(watched, write_base_model(folder / "base"), folder, "no_sync")
    return folder


@pytest.fixture(scope="module", params=list(LOOPS))
def run(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a recorded run, and its loop."""
    folder = tmp_path_factory.mktemp("run")
    in_processes(watched, base, folder, request.param)
    return folder, request.param


def test_a_recorded_run_has_the_bits_that_it_has_by_itself(run: tuple[Path, str], base: Path, tmp_path: Path) -> None:
    folder, loop = run
    in_processes(plain, base, tmp_path / "plain", loop, NOBODY)
    assert bytes_of(folder / "recorded") == bytes_of(tmp_path / "plain")


def test_the_log_holds_what_both_processes_did_in_the_order_of_their_sums(run: tuple[Path, str]) -> None:
    folder, loop = run
    log, (count, averages_each) = TrainingLog(folder / "log"), LOOPS[loop]
    assert (log.num_steps, log.manifest.world_size, log.commit.finished) == (STEPS, 2, True)
    ranks = [0, 1] * count if averages_each else [0] * count + [1] * count
    numbers = [number for number in range(count) for _ in (0, 1)] if averages_each else [*range(count)] * 2
    for number in range(STEPS):
        found = log.step(number).microbatches
        assert [microbatch.rank for microbatch in found] == ranks
        for record, rank, place in zip(found, ranks, numbers, strict=True):
            tokens, mask = microbatch(number, place, rank)
            rows = [row[: int(size)].tolist() for row, size in zip(tokens, mask.sum(dim=1), strict=True)]
            assert [sample.tokens.tolist() for sample in record.samples] == rows
        assert len({microbatch.rng for microbatch in found}) == 2 * count  # of dropout, each process its own
    losses = [sum(m.loss for m in log.step(number).microbatches) / (2 * count) for number in range(STEPS)]
    assert log.table("steps/loss").tolist() == losses


def test_one_process_replays_it_bit_for_bit(run: tuple[Path, str]) -> None:
    log = TrainingLog(run[0] / "log")
    found = verify(log, replay_steps=STEPS)
    assert found.replay is not None
    assert found.replay.num_exact == STEPS
    assert log.commit.self_check is not None
    assert log.commit.self_check.state == "exact"


def test_unlearning_in_one_process_gives_the_bits_of_a_retrain_in_two(
    run: tuple[Path, str], base: Path, tmp_path: Path
) -> None:
    folder, loop = run
    in_processes(plain, base, tmp_path / "gold", loop, FORGOTTEN)
    request = UnlearnOptions(
        forget=digests(), output=tmp_path / "unlearned", K=None, hessian_mode=HessianMode.SECANT, ledger=False
    )
    unlearn(folder / "log", request)
    gold, found, trained = (
        parameters_in(place) for place in (tmp_path / "gold", tmp_path / "unlearned", folder / "recorded")
    )
    assert all(torch.equal(gold[name], found[name]) for name in gold)
    assert not all(torch.equal(trained[name], found[name]) for name in gold)
    log = Path(shutil.copytree(folder / "log", tmp_path / "log"))
    unlearn(log, replace(request, output=tmp_path / "redacted", ledger=True, redact=True))
    assert bytes_of(tmp_path / "redacted") == bytes_of(tmp_path / "unlearned")
    replayed = verify(TrainingLog(log), replay_steps=STEPS)
    assert (replayed.problems, replayed.replay is not None and replayed.replay.is_exact) == ([], True)
    assert tombstones(TrainingLog(log)) == {bytes.fromhex(digest) for digest in digests().split(",")}


def test_the_plan_counts_the_vectors_that_the_sums_over_processes_take(run: tuple[Path, str]) -> None:
    folder, loop = run
    log, expected = TrainingLog(folder / "log"), {"plain": 1, "no_sync": 1, "averaged each time": 2}[loop]
    vector = 4 * log.manifest.num_elements
    step = log.step(0)
    alone = replace(step, microbatches=tuple(m for m in step.microbatches if m.rank == 0))
    peaks = []
    for manifest, taken in ((log.manifest, step), (replace(log.manifest, world_size=1), alone)):
        replay = open_replay(manifest)
        compute = partial(replay.gradient, taken, replay.load(log.parameters(0)))
        peaks.append(peak_of(compute, replay.device))
    assert peaks[0] - peaks[1] == pytest.approx(expected * vector, rel=0.25)
    request = UnlearnOptions(
        forget=digests(), output=None, dry_run=True, K=None, hessian_mode=HessianMode.SECANT, ledger=False
    )
    quick = plan_request(log, request, quick=True).plans[0]
    secant = unlearn(folder / "log", request).plan
    ahead = AHEAD + 3  # of updates, each of which is one span, and what one lies in compressed
    vectors = 4 + expected + 2 + ahead  # with what is kept of δ, and AdamW's state
    assert quick.parameter_memory_bytes == secant.parameter_memory_bytes == vectors * vector
    assert secant.activation_bytes == pytest.approx(peaks[0] - (1 + expected) * vector, rel=0.1)


def test_a_recorder_around_the_loop_makes_the_same_log(run: tuple[Path, str], base: Path) -> None:
    folder, loop = run
    in_processes(told, base, folder, loop)
    logs = TrainingLog(folder / "log"), TrainingLog(folder / "told")
    for name in set(logs[0].commit.tables) - {"steps/seconds"}:
        assert np.array_equal(logs[0].table(name), logs[1].table(name)), name
    assert logs[0].manifest.world_size == logs[1].manifest.world_size


@pytest.mark.parametrize("mode", [HessianMode.EXACT, HessianMode.GGN, HessianMode.EMPIRICAL_FISHER])
def test_curvature_weighs_each_process_as_its_gradient_does(mode: HessianMode, steady: Path) -> None:
    log = TrainingLog(steady / "log")
    replay, step = open_replay(log.manifest), log.step(1)
    theta = replay.load(log.parameters(1))
    gradient = [part for part in replay.gradient(step, theta) if part is not None]
    zeros = [torch.zeros_like(part) for part in theta]
    predicted = [part for part in predicted_gradient(replay, mode, step, theta, zeros, 0.0) if part is not None]
    assert distance(predicted, gradient) < 1e-5 * global_norm(gradient)
    vector = [part.sign() * 1e-3 for part in theta]
    product = curvature_product(replay, mode, step, theta, vector, 0.0)
    moved = [part for part in predicted_gradient(replay, mode, step, theta, vector, 0.0) if part is not None]
    change = [left - right for left, right in zip(gradient, moved, strict=True)]
    assert distance(change, product) < 1e-2 * global_norm(product)
    if mode is HessianMode.EXACT:
        ahead = [left + right for left, right in zip(theta, vector, strict=True)]
        true = [part for part in replay.gradient(step, ahead) if part is not None]
        difference = [left - right for left, right in zip(true, gradient, strict=True)]
        assert distance(difference, product) < 0.05 * global_norm(product)


def test_one_process_in_its_wrapper_is_recorded_with_clipped_gradients(base: Path, tmp_path: Path) -> None:
    in_processes(watched, base, tmp_path, "no_sync", count=1)
    log = TrainingLog(tmp_path / "log")
    assert (log.manifest.world_size, log.manifest.gradients) == (1, "lossless")
    assert log.table("steps/gradient_norm").tolist() == pytest.approx([MAX_NORM] * STEPS, rel=1e-4)
    assert log.commit.self_check is not None
    assert log.commit.self_check.state == "exact"


def test_of_three_processes_a_replay_is_off_by_roundings_only(base: Path, tmp_path: Path) -> None:
    in_processes(watched, base, tmp_path, "no_sync", count=3)
    checked = TrainingLog(tmp_path / "log").commit.self_check
    assert checked is not None
    assert checked.error is not None
    assert checked.state in {"exact", "close"}
    assert checked.error < 1e-4  # of a step; AdamW's square root of a tiny second moment magnifies a rounding


def take_a_step(base: Path, log: Path, how: str) -> None:
    """In a way that isn't recorded."""
    tokens = torch.arange(3, 11).repeat(ROWS, 1)
    with Watch(log):
        if how == "no_sync at the end":
            wrapped, optimizer = start(base)
            with wrapped.no_sync():
                wrapped(input_ids=tokens, labels=tokens).loss.backward()
        elif how == "a torch that hides join":
            wrapped, optimizer = start(base)
            wrapped(input_ids=tokens, labels=tokens).loss.backward()
            del wrapped._join_config
        else:
            dist.init_process_group("gloo")
            module = AutoModelForCausalLM.from_pretrained(base).train()
            if how == "fully_shard":
                fully_shard(module)
            if how == "FSDP":
                module = FullyShardedDataParallel(module, device_id=torch.device("cpu"))
            if how == "tensor parallel":
                mesh = init_device_mesh("cpu", (dist.get_world_size(),))
                parallelize_module(module.model.layers[0].mlp.down_proj, mesh, RowwiseParallel())
            optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
            module(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


def of_one_process(base: Path, log: Path) -> None:
    dist.init_process_group("gloo")
    module = fully_shard(AutoModelForCausalLM.from_pretrained(base).train())
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    with pytest.raises(UsageError, match="are shared out over processes") as error:
        Recorder(log, module, optimizer, RunDescription(model_source=str(base)))
    assert (error.value.exit_code, error.value.hint) == (2, "DistributedDataParallel is")
    assert not log.exists()


def test_one_process_alone_may_not_shard_either(base: Path, tmp_path: Path) -> None:
    in_processes(of_one_process, base, tmp_path / "log", count=1)


def is_refused(base: Path, log: Path, how: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        take_a_step(base, log, how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "fully_shard",
            "parameters of the FSDPLlamaForCausalLM are shared out over processes: FSDP and tensor parallel",
        ),
        ("FSDP", "parameters of the FullyShardedDataParallel are shared out over processes"),
        (
            "tensor parallel",
            "parameters of the Linear are shared out over processes: FSDP and tensor parallel aren't recorded",
        ),
        ("nothing around the model", "2 processes, but no DistributedDataParallel of all of them"),
        ("a torch that hides join", "doesn't tell whether the processes join"),
        ("no_sync at the end", "step 0: expected averaged gradients, found a last microbatch within no_sync"),
    ],
)
def test_what_is_not_plain_data_parallel_is_refused(how: str, message: str, base: Path, tmp_path: Path) -> None:
    in_processes(is_refused, base, tmp_path / "log", how, message)
