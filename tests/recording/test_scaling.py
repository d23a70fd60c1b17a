"""Float16 with a gradient scaler: recorded with each step's factor, without the steps that it left out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from two_processes import bytes_of, in_processes
from typer.testing import CliRunner

from lmcleaner.audit.check import audit_model
from lmcleaner.audit.history import tombstones
from lmcleaner.audit.options import AuditOptions
from lmcleaner.choices import HessianMode
from lmcleaner.cli.main import app
from lmcleaner.formats.errors import DivergedError, MismatchError, NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.inspection.verify import verify
from lmcleaner.recording.callback import LMCleanerCallback
from lmcleaner.recording.describe import RunDescription
from lmcleaner.recording.logger import TrainingLogger
from lmcleaner.recording.options import WatchOptions
from lmcleaner.recording.recorder import Recorder
from lmcleaner.recording.watch import Watch
from lmcleaner.training.replay import open_replay
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import unlearn
from real_runs import EVERY_TWO, STEPS, Setting, bits, load, reloaded, trainer_of, with_lora
from real_runs import FORGOTTEN as FORGOTTEN_BY_TRAINER
from real_runs import digests as digests_by_trainer
from tiny_runs import content_of, parameters_in, same_bits

ROWS, LENGTH = 4, 8
TOO_LARGE = 2.0**60
# Of each call of the scaler; it leaves out the first two and two later ones.
FACTORS = (TOO_LARGE, TOO_LARGE, 2.0**16, 2.0**16, TOO_LARGE, 2.0**15, 2.0**17, 2.0**17, TOO_LARGE, 2.0**10)
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step:UserWarning")
TAKEN = [call for call, factor in enumerate(FACTORS) if factor < TOO_LARGE]
Rows = Iterable[tuple[int, int]]  # batch and row
FORGOTTEN = ((2, 0), (3, 3), (6, 1), (9, 2))


@dataclass(frozen=True)
class Loop:
    """How a loop differs from one with `AdamW` that neither clips nor accumulates."""

    load: Callable[[Path], Any] = load
    optimizer: dict[str, Any] = field(default_factory=dict)
    clip: float | None = None
    accumulation: int = 1
    is_accelerated: bool = False
    odd: float = 1.0


def lora_over_float16(base: Path) -> Any:
    return with_lora(base, base_dtype=torch.float16, lora_dropout=0.1)


LOOPS = {
    "plain": Loop(),
    "clipped, accumulated": Loop(clip=0.5, accumulation=2),
    "fused": Loop(optimizer={"fused": True}),
    "fused, clipped": Loop(optimizer={"fused": True}, clip=0.5),
    "Accelerate's optimizer": Loop(is_accelerated=True),
    "odd factors": Loop(clip=0.5, odd=1.7),
    "LoRA over float16": Loop(load=lora_over_float16),
}


def batch(number: int, forgotten: Rows = ()) -> dict[str, Tensor]:
    tokens = torch.randint(3, 20, (ROWS, LENGTH), generator=torch.Generator().manual_seed(number))
    labels = tokens.clone()
    for row in (row for at, row in forgotten if at == number):
        labels[row] = IGNORED_LABEL
    return {"input_ids": tokens, "labels": labels, "num_items_in_batch": torch.tensor(ROWS * (LENGTH - 1))}


def digests(forgotten: Rows = FORGOTTEN) -> str:
    contents = [batch(at)["input_ids"][row].int().numpy() for at, row in forgotten]
    return ",".join(Sample(content, content).digest.hex() for content in contents)


def train(
    loop: Loop,
    base: Path,
    forgotten: Rows = (),
    after_each: Callable[[int, Any], None] | None = None,
) -> Any:
    """The model; of several processes each takes every so many batches."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if ranks > 1 else 0
    torch.manual_seed(rank)
    model = loop.load(base)
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    optimizer: Any = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, **loop.optimizer)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, len(FACTORS))
    factors = [factor * loop.odd for factor in FACTORS]
    scaler = torch.amp.GradScaler("cpu", init_scale=factors[0])
    if loop.is_accelerated:
        Accelerator(cpu=True)  # whose state it asks for
        optimizer = AcceleratedOptimizer(optimizer, scaler=scaler)
    for call, following in enumerate([*factors[1:], 1.0]):
        for number in range(loop.accumulation):
            with torch.autocast("cpu", torch.float16):
                place = (call * ranks + rank) * loop.accumulation + number
                loss = wrapped(**batch(place, forgotten)).loss / loop.accumulation
            scaler.scale(loss).backward()
        if loop.clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), loop.clip)
        if loop.is_accelerated:
            optimizer.step()
        else:
            scaler.step(optimizer)
        scaler.update(following)
        optimizer.zero_grad()
        if after_each is not None:
            after_each(call, model)
        schedule.step()
    return model


def forgets(log: Path, output: Path, forget: str, **options: Any) -> None:
    request = UnlearnOptions(forget=forget, output=output, K=None, hessian_mode=HessianMode.SECANT, **options)
    unlearn(log, request)


def check_exact(log: TrainingLog) -> None:
    assert log.commit.self_check is not None
    assert (log.commit.self_check.state, log.commit.self_check.why) == ("exact", "")
    found = verify(log, replay_steps=log.num_steps)
    assert (found.problems, found.replay is not None and found.replay.is_exact) == ([], True)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_scaled_training_forgets_as_a_retraining_does(loop: Loop, base_model: Path, tmp_path: Path) -> None:
    with Watch(tmp_path / "log", WatchOptions(checkpoint_every=2, gradients="lossless")):
        trained = train(loop, base_model)
    assert same_bits(bits(trained), bits(train(loop, base_model)))
    log = TrainingLog(tmp_path / "log")
    check_exact(log)
    assert log.manifest.loss_divisor == loop.accumulation
    assert log.table("steps/loss_scale") == pytest.approx([FACTORS[call] * loop.odd for call in TAKEN], rel=1e-7)
    for step, call in enumerate(TAKEN):
        places = range(call * loop.accumulation, (call + 1) * loop.accumulation)
        expected = [row for place in places for row in batch(place)["input_ids"].tolist()]
        assert [sample.tokens.tolist() for sample in log.step(step).samples] == expected
    forgotten = [(call * loop.accumulation, row) for call, row in FORGOTTEN]
    forgets(tmp_path / "log", tmp_path / "out", digests(forgotten))
    retrained = train(loop, base_model, forgotten)
    assert same_bits(bits(reloaded(retrained, base_model, tmp_path / "out")), bits(retrained))
    assert not same_bits(bits(trained), bits(retrained))
    assert audit_model(tmp_path / "out", tmp_path / "log", AuditOptions(oracle=True)).passed


@pytest.mark.parametrize("loop", ["plain", "clipped, accumulated", "fused"])
def test_the_log_holds_gradients_and_norms_without_the_factor(loop: str, base_model: Path, tmp_path: Path) -> None:
    with Watch(tmp_path / "log", WatchOptions(gradients="lossless")):
        train(LOOPS[loop], base_model)
    log = TrainingLog(tmp_path / "log")
    replay = open_replay(log.manifest)
    for number in range(log.num_steps):
        step = log.step(number)
        parts = [part for part in replay.gradient(step, replay.load(log.parameters(number))) if part is not None]
        norm = float(torch.nn.utils.get_total_norm(parts))
        assert 0.01 < norm < 10
        if step.unclipped_norm is not None:
            assert step.unclipped_norm == pytest.approx(norm, rel=1e-5)
        state = replay.state(log.checkpoint(0))
        state.clip(list(parts))
        given = replay.load(log.gradient(number))
        assert all(torch.equal(left, right) for left, right in zip(parts, given, strict=True))
        assert step.gradient_norm == pytest.approx(float(torch.nn.utils.get_total_norm(given)), rel=1e-6)


@pytest.mark.parametrize("is_sft", [False, True])
def test_a_trainer_that_leaves_out_its_first_step(is_sft: bool, base_model: Path, tmp_path: Path) -> None:
    """On the CPU accelerate trains in float32 where it is told fp16; what it gives a GPU is put in its place."""
    setting = Setting(load, is_sft=is_sft, trainer={"fp16": True, "bf16": False})

    def by_trainer(forgotten: Rows = (), **options: Any) -> Any:
        trainer = trainer_of(setting, base_model, tmp_path, forgotten, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=TOO_LARGE, backoff_factor=2.0**16 / TOO_LARGE)
        trainer.accelerator.native_amp, trainer.accelerator.scaler = True, scaler
        trainer.train()
        assert trainer.model is not None
        return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)

    by_trainer(callbacks=[LMCleanerCallback(tmp_path / "log", EVERY_TWO)])
    log = TrainingLog(tmp_path / "log")
    check_exact(log)
    assert (log.num_steps, log.manifest.numerics.autocast) == (STEPS - 1, "float16")
    assert log.table("steps/loss_scale").tolist() == [2.0**16] * (STEPS - 1)
    assert sum(len(log.step(number).samples) for number in range(STEPS - 1)) == ROWS * (STEPS - 1)
    pairs = zip(digests_by_trainer(setting).split(","), FORGOTTEN_BY_TRAINER, strict=True)
    seen = {sample.digest.hex() for number in range(STEPS - 1) for sample in log.step(number).samples}
    forgotten = {digest: place for digest, place in pairs if digest in seen}
    assert len(forgotten) >= 2
    forgets(tmp_path / "log", tmp_path / "out", ",".join(forgotten))
    assert same_bits(parameters_in(tmp_path / "out"), bits(by_trainer(forgotten.values())))


def in_two(base: Path, output: Path, log: Path | None, forgotten: Rows = ()) -> None:
    dist.init_process_group("gloo")
    loop = LOOPS["clipped, accumulated"]
    if log is None:
        model = train(loop, base, forgotten)
    else:
        with Watch(log, EVERY_TWO):
            model = train(loop, base)
    if dist.get_rank() == 0:
        model.save_pretrained(output)


def test_two_processes_leave_out_a_step_together(base_model: Path, tmp_path: Path) -> None:
    in_processes(in_two, base_model, tmp_path / "recorded", tmp_path / "log")
    log = TrainingLog(tmp_path / "log")
    check_exact(log)
    assert (log.num_steps, log.manifest.world_size) == (len(TAKEN), 2)
    gone = ((8, 0), (14, 1), (15, 3), (38, 2))
    forgets(tmp_path / "log", tmp_path / "out", digests(gone))
    in_processes(in_two, base_model, tmp_path / "gold", None, gone)
    assert same_bits(parameters_in(tmp_path / "out"), parameters_in(tmp_path / "gold"))
    assert bytes_of(tmp_path / "gold") != bytes_of(tmp_path / "recorded")


def test_its_log_can_be_redacted_and_inspected(base_model: Path, tmp_path: Path) -> None:
    with Watch(tmp_path / "log", EVERY_TWO):
        train(LOOPS["plain"], base_model)
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "log"), "--step", "2"]).output
    assert "losses scaled by 32768, gradient norm" in shown
    forgets(tmp_path / "log", tmp_path / "out", digests(), redact=True)
    assert same_bits(parameters_in(tmp_path / "out"), bits(train(LOOPS["plain"], base_model, FORGOTTEN)))
    log = TrainingLog(tmp_path / "log")
    found = verify(log, replay_steps=log.num_steps)
    assert (found.problems, found.replay is not None and found.replay.is_exact) == ([], True)
    assert tombstones(log) == {bytes.fromhex(digest) for digest in digests().split(",")}
    assert log.table("steps/loss_scale").tolist() == [FACTORS[call] for call in TAKEN]


def test_an_interrupted_one_goes_on_and_compares_the_factors(base_model: Path, tmp_path: Path) -> None:
    def interrupt(call: int, model: Any) -> None:
        if call == TAKEN[3]:
            raise KeyboardInterrupt

    with Watch(tmp_path / "whole", EVERY_TWO):
        train(LOOPS["plain"], base_model)
    with pytest.raises(KeyboardInterrupt), Watch(tmp_path / "log", EVERY_TWO):
        train(LOOPS["plain"], base_model, after_each=interrupt)
    with (
        pytest.raises(MismatchError, match=r"step 0, loss scale: expected 65536\.0, found 13107[12]"),
        Watch(tmp_path / "log", WatchOptions(resume=True)),
    ):
        train(Loop(odd=2.0), base_model)
    with Watch(tmp_path / "log", WatchOptions(resume=True)):
        train(LOOPS["plain"], base_model)
    assert content_of(tmp_path / "log") == content_of(tmp_path / "whole")


def test_the_classic_logger_may_be_told_of_steps_that_were_left_out(base_model: Path, tmp_path: Path) -> None:
    logger = TrainingLogger(str(tmp_path / "log"))

    def register(call: int, model: Any) -> None:
        logger.register_step(call, call, 1e-2 * (1 - 0.9 * call / len(FACTORS)), model)

    train(LOOPS["plain"], base_model, after_each=register)
    logger.save_to_disk()
    assert TrainingLog(tmp_path / "log").num_steps == len(TAKEN)


def test_a_row_of_a_step_that_was_left_out_is_not_known(base_model: Path, tmp_path: Path) -> None:
    with Watch(tmp_path / "log", EVERY_TWO):
        train(LOOPS["plain"], base_model)
    with pytest.raises(NotFoundError, match="the run never saw this"):
        forgets(tmp_path / "log", tmp_path / "out", digests([(0, 0)]))


def test_a_gradient_that_overflows_elsewhere_is_an_error(base_model: Path, tmp_path: Path) -> None:
    with Watch(tmp_path / "log", EVERY_TWO):
        train(LOOPS["plain"], base_model)
    log = TrainingLog(tmp_path / "log")
    replay = open_replay(log.manifest)
    with pytest.raises(DivergedError, match=r"overflows float16 where the run's didn't: losses are scaled by 1\.15"):
        replay.gradient(replace(log.step(0), loss_scale=TOO_LARGE), replay.load(log.parameters(0)))


def test_a_mode_with_a_curvature_forgets_about_as_well(base_model: Path, tmp_path: Path) -> None:
    with Watch(tmp_path / "log", EVERY_TWO):
        trained = train(LOOPS["plain"], base_model)
    request = UnlearnOptions(forget=digests(), output=tmp_path / "out", K=None, hessian_mode=HessianMode.EXACT)
    assert any(
        "trained under float16 autocast; curvature is computed" in line
        for line in unlearn(tmp_path / "log", request).lines
    )
    before, found, gold = (
        torch.cat([model[name].flatten() for name in sorted(model)])
        for model in (
            bits(trained),
            parameters_in(tmp_path / "out"),
            bits(train(LOOPS["plain"], base_model, FORGOTTEN)),
        )
    )
    assert (found - gold).norm() < 0.5 * (before - gold).norm()


METHODS = torch.amp.GradScaler.scale, torch.amp.GradScaler.unscale_, torch.amp.GradScaler.step


def badly(base: Path, log: Path, how: str) -> None:
    """A step that no replay could take."""
    model = AutoModelForCausalLM.from_pretrained(base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu")
    clip = 0.5 if how == "clips" else None
    description = RunDescription(model_source=str(base), max_grad_norm=clip, autocast="float16")
    with Recorder(log, model, optimizer, description):
        for _ in range(1 + (how == "two factors")):
            with torch.autocast("cpu", torch.float16):
                loss = model(**batch(0)).loss
            scaler.scale(loss).backward()
            scaler.update(2.0**12)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if how == "by itself":
            optimizer.step()
        else:
            scaler.step(optimizer)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("clips", "the loop clips gradients that are still scaled: step 0: found a factor of 65536"),
        ("by itself", "the loop takes a step by gradients that are still scaled: step 0"),
        ("two factors", r"scaled by different factors: step 0: found \[4096\.0, 65536\.0\]"),
    ],
)
def test_what_would_be_replayed_otherwise_is_refused(how: str, message: str, base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        badly(base_model, tmp_path / "log", how)
    assert (torch.amp.GradScaler.scale, torch.amp.GradScaler.unscale_, torch.amp.GradScaler.step) == METHODS
