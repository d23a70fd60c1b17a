"""Outputs that can't be written say so, and before anything is computed where that can be known."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from lmcleaner.formats.errors import ResourceError
from lmcleaner.formats.store import storage_errors
from lmcleaner.output import atomic_folder, check_room


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Files of this process may not grow beyond, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_safetensors_word_of_a_full_disk_is_an_error_of_ours(tmp_path: Path) -> None:
    weights = {"weight": np.ones(1 << 16, np.float32)}
    with (
        largest_file(1 << 12),
        pytest.raises(ResourceError, match=r"can't write: .*out: File too large") as caught,
        atomic_folder(tmp_path / "out") as folder,
    ):
        save_file(weights, folder / "model.safetensors")
    assert caught.value.hint == "free some space or choose another folder"
    assert isinstance(caught.value.__cause__, SafetensorError)
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_safetensors_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="not of the system"), storage_errors(tmp_path):
        raise SafetensorError("not of the system")


def test_a_place_in_a_file_is_none_for_an_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"can't write: .*: not a folder: .*file$"):
        check_room(tmp_path / "file" / "new" / "out", 0)


def test_an_output_that_has_no_room_is_refused(tmp_path: Path) -> None:
    check_room(tmp_path / "new" / "out", 1 << 10)
    with pytest.raises(ResourceError, match=r"no room for the output: .*out: expected \d+\.\d MB, found \d+\.\d MB"):
        check_room(tmp_path / "new" / "out", 1 << 60)
    assert list(tmp_path.iterdir()) == []
