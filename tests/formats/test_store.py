"""Stores: folders, remote places; and what an attacker may have left there."""

import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr.storage
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.tar import TarFileSystem
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lmcleaner.formats.errors import DamagedError, ResourceError, UsageError
from lmcleaner.formats.folders import write_new
from lmcleaner.formats.local_files import FOLDER_DEPTH
from lmcleaner.formats.store import Store, open_store


def memory_url() -> str:
    return f"memory://log-{uuid.uuid4().hex}"


@pytest.fixture(params=["folder", "file URL", "memory URL", "store of Zarr's"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    places: dict[str, Any] = {
        "folder": tmp_path / "new" / "log",
        "file URL": f"file://{tmp_path}/a%20log",
        "memory URL": memory_url(),
        "store of Zarr's": zarr.storage.MemoryStore(),
    }
    return open_store(places[request.param], writable=True)


def test_objects_are_written_read_listed_and_removed(store: Store) -> None:
    assert not list(store.list())
    store.write("a/c/0", [b"abc", b"", b"defg"])
    store.write("a-b", [])
    store.write("a/c/0", [b"01234", b"56789"])
    store.sync()
    assert store.read("a/c/0") == b"0123456789"
    assert store.read("a/c/0", 3, 4) == b"3456"
    assert store.read("a/c/0", 8, 400) == b"89"
    assert store.read("a/c/0", 0, 0) == store.read("a/c/0", 10) == store.read("a-b", 0, 10) == b""
    assert (store.size("a/c/0"), store.size("a-b")) == (10, 0)
    assert list(store.list()) == [("a-b", 0), ("a/c/0", 10)]
    assert list(store.list("a")) == [("a/c/0", 10)]
    assert not list(store.list("nothing"))
    store.delete("a")
    store.delete("a")
    store.sync()
    assert list(store.list()) == [("a-b", 0)]
    store.delete("")
    assert not list(store.list())


@pytest.mark.parametrize("key", ["a", "a/b", "a/b/c/d", "b", "n" * 300, "n" * 300 + "/a"])
def test_what_is_not_there_is_not_found(store: Store, key: str) -> None:
    store.write("a/b/c", [b"1"])
    assert not store.exists(key)
    for read in (store.read, store.size):
        with pytest.raises(FileNotFoundError):
            read(key)


def test_an_object_is_created_only_once(store: Store) -> None:
    store.create("lock", [b"first"])
    with pytest.raises(FileExistsError):
        store.create("lock", [b"second"])
    assert store.read("lock") == b"first"


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "a\0b", "a\\..\\b", "\ud800"]
)
def test_keys_never_lead_out_of_the_log(store: Store, key: str) -> None:
    for use in (store.read, store.size, store.exists):
        with pytest.raises(DamagedError, match="escapes"):
            use(key)
    for change in (store.write, store.create):
        with pytest.raises(DamagedError, match="escapes"):
            change(key, [b""])
    if key:
        with pytest.raises(DamagedError, match="escapes"):
            store.delete(key)
        with pytest.raises(DamagedError, match="escapes"):
            list(store.list(key))


def test_nothing_is_written_into_a_store_that_is_open_for_reading(tmp_path: Path) -> None:
    for place in (tmp_path, memory_url(), zarr.storage.MemoryStore()):
        reader = open_store(place)
        for change in (reader.write, reader.create):
            with pytest.raises(UsageError):
                change("a", [b""])
        with pytest.raises(UsageError):
            reader.delete("a")
    with pytest.raises(UsageError, match="can't be written"):
        open_store(zarr.storage.MemoryStore(read_only=True), writable=True)


@pytest.mark.parametrize("location", [None, 3, b"log"])
def test_what_is_no_place_is_refused(location: Any) -> None:
    with pytest.raises(UsageError, match=f"expected a folder, a URL or a store, found {location!r}"):
        open_store(location)


def test_what_one_store_writes_another_one_reads() -> None:
    url = memory_url()
    open_store(url, writable=True).write("a/zarr.json", [b"{}"])
    reader = open_store(url)
    assert reader.location == url
    assert reader.read("a/zarr.json") == b"{}"
    assert not open_store(url + "/a").exists("a/zarr.json")
    assert open_store(url + "/a").read("zarr.json") == b"{}"


def test_a_store_that_is_open_stays_itself(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert open_store(store) is store
    assert store.location == str(tmp_path)


@pytest.mark.parametrize("url", ["s3://bucket/log", "nothing-known://log"])
def test_a_url_that_nothing_can_read_says_what_to_install(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert caught.value.hint
    assert ("lmcleaner[remote]" in caught.value.hint) == url.startswith("s3")


def test_local_logs_do_not_load_zarr(tmp_path: Path) -> None:
    script = (
        "import sys; from lmcleaner.formats.store import open_store; "
        f"list(open_store({str(tmp_path)!r}).list()); assert not {{'zarr', 'fsspec'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("key", ["link", "inside/file", "loop/loop/loop/file", "pipe", "socket"])
def test_links_and_special_files_are_damage_and_never_opened(tmp_path: Path, key: str) -> None:
    outside, log = tmp_path / "outside", tmp_path / "log"
    outside.mkdir()
    log.mkdir()
    (outside / "file").write_bytes(b"secret")
    (log / "link").symlink_to(outside / "file")
    (log / "inside").symlink_to(outside)
    (log / "loop").symlink_to(log)
    os.mkfifo(log / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(log / "socket"))
    store = open_store(log, writable=True)
    for use in (store.read, store.size, store.exists):
        with pytest.raises(DamagedError, match=key):
            use(key)
    assert list(store.list()) == [(name, 0) for name in ("inside", "link", "loop", "pipe", "socket")]
    if "/" in key:
        for change in (store.write, store.create):
            with pytest.raises(DamagedError, match=key):
                change(key, [b"overwritten"])
        with pytest.raises(DamagedError, match=key):
            store.delete(key)
    store.delete(key.split("/")[0])
    assert (outside / "file").read_bytes() == b"secret"


def test_a_removed_log_leaves_no_empty_folders(tmp_path: Path) -> None:
    store = open_store(tmp_path, writable=True)
    store.write("a/b/c", [b"1"])
    store.delete("a/b")
    store.delete("")
    assert not list(tmp_path.iterdir())


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "log").symlink_to(tmp_path / "disk")
    store = open_store(tmp_path / "log", writable=True)
    store.write("a/b", [b"1"])
    assert (tmp_path / "disk" / "a" / "b").read_bytes() == store.read("a/b") == b"1"


def test_the_walk_ends_in_a_tree_that_is_too_deep(tmp_path: Path) -> None:
    depth = FOLDER_DEPTH + 10
    tmp_path.joinpath(*["d"] * depth).mkdir(parents=True)
    assert list(open_store(tmp_path).list()) == [("/".join(["d"] * FOLDER_DEPTH), 0)]


def test_a_folder_in_the_way_of_an_object_is_damage(tmp_path: Path) -> None:
    (tmp_path / "zarr.json" / "full").mkdir(parents=True)
    (tmp_path / "file").touch()
    store = open_store(tmp_path, writable=True)
    for key in ("zarr.json", "file/zarr.json"):
        with pytest.raises(DamagedError, match=key):
            store.write(key, [b""])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "zarr.json"]


def test_a_failed_write_leaves_the_old_object_and_nothing_else(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    store = open_store(tmp_path, writable=True)
    store.write("a", [b"old"])
    for change, key in ((store.write, "a"), (store.create, "b")):
        with pytest.raises(KeyboardInterrupt):
            change(key, parts())
    assert list(store.list()) == [("a", 3)]
    assert store.read("a") == b"old"


def test_a_full_disk_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    script = """
import resource, sys
from lmcleaner.formats.errors import ResourceError
from lmcleaner.formats.store import open_store
store = open_store(sys.argv[1], writable=True)
store.write("a/b", [b"old"])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for change, key in ((store.write, "a/b"), (store.create, "a/c")):
    try:
        change(key, [b"x" * 70_000] * 3)
    except ResourceError as error:
        assert "a/" in error.message and error.hint, error
    else:
        sys.exit("written")
assert list(store.list()) == [("a/b", 3)]
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], check=True)


def test_a_folder_that_cannot_be_read_is_no_resource(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a").touch()
    store = open_store(tmp_path, writable=True)
    monkeypatch.setattr(os, "open", refuse)
    for use in (store.read, store.size, store.delete):
        with pytest.raises(ResourceError, match="Permission denied"):
            use("a")
    with pytest.raises(ResourceError, match="Permission denied"):
        list(store.list())


def test_bytes_reach_the_disk_before_their_name_and_sync_covers_every_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watch(file: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}")))
        fsync(file)

    monkeypatch.setattr(os, "fsync", watch)
    store = open_store(tmp_path / "log", writable=True)
    store.write("a/b/c", [b"1"])
    assert len(synced) == 1
    assert synced.pop().startswith("c.")
    store.sync()
    assert sorted(synced) == sorted(["a", "b", "log", tmp_path.name])
    store.sync()
    assert len(synced) == 4


def test_a_whole_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    store = open_store(tmp_path)
    with pytest.raises(DamagedError, match="at most"):
        store.read("large")
    assert store.read("large", 1 << 39, 3) == b"\0\0\0"
    assert store.read("large", 1 << 65, 3) == b""


@pytest.mark.parametrize("name", ["file", "file/log", "nowhere", "loop"])
def test_a_log_whose_place_is_no_folder_is_not_begun(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    store = open_store(tmp_path / name, writable=True)
    for change in (store.write, store.create):
        with pytest.raises(UsageError, match=name) as caught:
            change("zarr.json", [b"{}"])
        assert caught.value.hint
    assert not (tmp_path / "gone").exists()


class NoCredentialsError(Exception):
    """What a backend's package raises; nobody else has a name for it."""


class Unreachable(zarr.storage.MemoryStore):
    """A backend that always fails."""

    error: Exception = NoCredentialsError("no key found")

    async def get(self, key: str, *_: Any, **__: Any) -> Any:
        raise self.error

    async def set(self, key: str, *_: Any, **__: Any) -> None:
        raise self.error

    async def delete(self, key: str) -> None:
        raise self.error


@pytest.mark.parametrize("error", [NoCredentialsError("no key found"), PermissionError(13, "no key found")])
def test_what_a_backend_reports_is_an_error_that_names_the_object(error: Exception) -> None:
    backend = Unreachable()
    backend.error = error
    store = open_store(backend, writable=True)
    for use in (store.read, store.size, store.exists, lambda key: store.write(key, []), store.delete):
        with pytest.raises(ResourceError, match=r"a/b: .*no key found") as caught:
            use("a/b")
        assert caught.value.hint


def test_a_programming_error_of_a_backend_is_not_hidden() -> None:
    backend = Unreachable()
    backend.error = TypeError("wrong")
    with pytest.raises(TypeError, match="wrong"):
        open_store(backend).read("a")


class StoresLikeADict(RuleBasedStateMachine):
    """The stores do what a dict does. Names of folders and of objects differ, as they do in a log."""

    keys = st.builds(
        lambda folders, name: "/".join([*folders, name]),
        st.lists(st.sampled_from(["a", "b", "a-b"]), max_size=2),
        st.sampled_from(["0", "1", "zarr.json"]),
    )
    prefixes = st.one_of(keys, st.sampled_from(["", "a", "a/b", "a-b", "b/a"]))
    contents = st.lists(st.binary(max_size=6), max_size=3)

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.stores = [open_store(place, writable=True) for place in (self.folder, memory_url())]
        self.model: dict[str, bytes] = {}

    @rule(key=keys, parts=contents)
    def write(self, key: str, parts: list[bytes]) -> None:
        for store in self.stores:
            store.write(key, parts)
        self.model[key] = b"".join(parts)

    @rule(key=keys, parts=contents)
    def create(self, key: str, parts: list[bytes]) -> None:
        for store in self.stores:
            if key in self.model:
                with pytest.raises(FileExistsError):
                    store.create(key, parts)
            else:
                store.create(key, parts)
        self.model.setdefault(key, b"".join(parts))

    @rule(prefix=prefixes)
    def delete(self, prefix: str) -> None:
        for store in self.stores:
            store.delete(prefix)
        self.model = {key: data for key, data in self.model.items() if not _within(key, prefix) and key != prefix}

    @rule(key=keys, start=st.integers(0, 8), length=st.none() | st.integers(0, 8))
    def read(self, key: str, start: int, length: int | None) -> None:
        for store in self.stores:
            assert store.exists(key) == (key in self.model)
            if key in self.model:
                expected = self.model[key][start:][:length]
                assert store.read(key, start, length) == expected
                assert store.size(key) == len(self.model[key])
            else:
                with pytest.raises(FileNotFoundError):
                    store.read(key, start, length)

    @rule(prefix=prefixes)
    def list_some(self, prefix: str) -> None:
        expected = sorted((key, len(data)) for key, data in self.model.items() if _within(key, prefix))
        for store in self.stores:
            assert list(store.list(prefix)) == expected

    @invariant()
    def lists_everything(self) -> None:
        self.list_some("")

    def teardown(self) -> None:
        for store in self.stores:
            store.sync()
            store.delete("")
        self.folder.rmdir()


def _within(key: str, prefix: str) -> bool:
    return not prefix or key.startswith(f"{prefix}/")


TestStoresLikeADict = StoresLikeADict.TestCase
TestStoresLikeADict.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_a_new_file_is_whole_or_absent(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        write_new(folder, "a", [b"1", b"2"])
        with pytest.raises(FileExistsError):
            write_new(folder, "a", [])
    finally:
        os.close(folder)
    assert (tmp_path / "a").read_bytes() == b"12"


def test_a_backend_that_has_no_way_to_write_says_so(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("content")
    with tarfile.open(tmp_path / "log.tar", "w") as archive:
        archive.add(tmp_path / "x", "x")
    files = AsyncFileSystemWrapper(TarFileSystem(str(tmp_path / "log.tar")), asynchronous=True)
    store = open_store(zarr.storage.FsspecStore(files, path=""), writable=True)
    assert store.read("x") == b"content"
    with pytest.raises(UsageError, match="can't be written there"):
        store.create("lock.json", [b"x"])
