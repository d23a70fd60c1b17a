"""A checkpoint as Hugging Face `Trainer` resumes from, made of a run's state in memory."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

RNG_FILE = "rng_state.pth"  # transformers has no name for it


def write_trainer_checkpoint(folder: Path, trainer: Any, step: int, num_steps: int) -> None:
    """Writes what `Trainer` needs to go on at a step.

    Args:
        folder: to be made.
        trainer: with model, optimizer and generators as they were before the step; its learning rates are set.
        step: the step.
        num_steps: steps of the whole run, for the schedule.
    """
    from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
    from transformers.trainer_callback import TrainerState

    trainer.model.save_pretrained(folder)
    torch.save(_generators(), folder / RNG_FILE)
    schedule = _schedule(trainer, step, num_steps)
    torch.save(schedule, folder / SCHEDULER_NAME)
    torch.save(trainer.optimizer.state_dict(), folder / OPTIMIZER_NAME)
    state = TrainerState(global_step=step, train_batch_size=trainer.args.train_batch_size)
    state.save_to_json(str(folder / TRAINER_STATE_NAME))


def _schedule(trainer: Any, step: int, num_steps: int) -> dict[str, Any]:
    """State of the schedule before the step, whose learning rates the optimizer gets.

    Stepping it there would take as long as the run is long, and warn that the optimizer doesn't move.
    """
    schedule = trainer.create_scheduler(num_training_steps=num_steps)
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    moved: dict[str, Any] = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    return dict(schedule.state_dict()) | moved


def _generators() -> dict[str, Any]:
    """All generators that `Trainer` sets; a recorded run draws from torch's alone."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})
