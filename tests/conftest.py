"""What every test shares: one thread, quiet libraries, and a small recorded run."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TQDM_DISABLE"] = "1"
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tiny_runs import TinyRun, record_tiny, write_base_model


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads of a tiny model wait for each other longer than they work; the rest as `record` has it."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(torch.cuda.is_available())
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, without dropout."""
    return write_base_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="session")
def adamw_run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Two epochs over 20 rows with AdamW, clipping and a checkpoint every four steps; tests only read it."""
    return record_tiny(base_model, tmp_path_factory.mktemp("adamw"))
