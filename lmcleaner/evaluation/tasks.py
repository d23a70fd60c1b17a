"""General-ability tasks, run by the extra `tasks`: EleutherAI's lm-evaluation-harness.

Gao et al., "A framework for few-shot language model evaluation", 2021.
"""

import copy
import io
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lmcleaner.evaluation.libraries import lm_eval
from lmcleaner.formats.errors import NotFoundError, UsageError
from lmcleaner.progress import Progress

_BATCH_SIZE = 8
_LOGGER = "lm_eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """Tasks that are ready to be run.

    Attributes:
        names: what was asked for: names of tasks, groups or tags.
        loaded: the harness's `tasks` by name, with their data, and its `groups`.
        limit: how many rows of each task are taken; None for all.
        harness: the harness's version.
    """

    names: tuple[str, ...]
    loaded: Mapping[str, Any]
    limit: int | None
    harness: str


def load_tasks(names: Sequence[str], folder: Path | None, limit: int | None) -> Tasks:
    """Loads tasks with their data, before anything is computed.

    Args:
        names: of tasks, groups or tags that the harness or the folder has.
        folder: with YAML files of further tasks, in the harness's form.
        limit: how many rows of each task are taken; None for all.

    Returns:
        The tasks.

    Raises:
        NotFoundError: the harness isn't installed, there is no such folder or task, or the harness can't load it.
        UsageError: a task runs code that a model writes.
    """
    harness = lm_eval()
    from lm_eval.tasks import TaskManager

    if folder is not None and not folder.is_dir():
        raise NotFoundError(f"no such folder of tasks: {folder}", hint="--tasks-path names a folder of YAML files")
    with _quiet():
        manager = TaskManager(include_path=folder)
    _check_known(names, manager.all_tasks)
    try:
        with _quiet():
            loaded = manager.load([*names])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NotFoundError(
            f"--tasks: {', '.join(names)} can't be loaded: {error}",
            hint="its data must be on a hub that can be reached, or cached; --tasks-path names tasks of your own",
        ) from error
    unsafe = sorted(name for name, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False))
    if unsafe:
        raise UsageError(f"--tasks: {unsafe[0]} runs code that the models write: expected tasks that only read it")
    return Tasks(names=tuple(names), loaded=loaded, limit=limit, harness=harness.__version__)


def run_tasks(
    models: Mapping[str, nn.Module], tokenizer: Any, tasks: Tasks, progress: Progress
) -> dict[str, Mapping[str, Any]]:
    """Runs the tasks on models.

    Args:
        models: by name; they aren't changed.
        tokenizer: of all of them.
        tasks: of `load_tasks`.
        progress: is told of every model, and once of each warning of the harness.

    Returns:
        For each model what the harness's `evaluate` returned, without its samples.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    found, warnings = {}, dict[str, None]()
    progress.begin("tasks", len(models))
    for name, model in models.items():
        with _quiet():
            adapted = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=_BATCH_SIZE)
            with _warnings_into(warnings):
                _prepare(tasks.loaded["tasks"].values())
                found[name] = evaluate(lm=adapted, task_dict=tasks.loaded, limit=tasks.limit, log_samples=False)
        progress.advance()
    for warning in warnings:
        progress.say(f"lm_eval: {warning}")
    return found


def _prepare(tasks: Iterable[Any]) -> None:
    """Shots and seeds as the harness's own `simple_evaluate` sets them, which also asks git and pip what is here."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    for task in tasks:
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _check_known(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "`lm_eval ls tasks` lists the harness's own"
            raise NotFoundError(f"--tasks: no such task: {name}", hint=hint)


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness prints, and draws bars of its own."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _warnings_into(texts: dict[str, None]) -> Iterator[None]:
    """Keeps what the harness warns of, once each."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.setdefault(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(_LOGGER)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
