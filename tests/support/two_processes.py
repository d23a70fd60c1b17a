"""Runs a function in two processes that train together, forked so that no library is imported again."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from torch.multiprocessing.spawn import start_processes


def in_processes(function: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Calls `function(*arguments)` in each, as `torchrun` sets the environment; an error of one is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_one, args=(count, port, function, arguments), nprocs=count, start_method="fork")


def _one(rank: int, count: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, **place}
    os.environ.update({name: str(value) for name, value in values.items()})
    AcceleratorState._reset_state(reset_partial_state=True)  # of other tests, before the fork
    torch.set_num_threads(1)
    function(*arguments)
    if dist.is_initialized():
        dist.destroy_process_group()


def bytes_of(folder: Path) -> bytes:
    """The weights of a saved model."""
    return (folder / "model.safetensors").read_bytes()
