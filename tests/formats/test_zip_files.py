"""A log in a zip file is read and never written; whatever happened to the file is damage."""

import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import zarr.storage

from lmcleaner.formats.errors import DamagedError, UsageError
from lmcleaner.formats.store import Store, open_store


def write_zip(path: Path, prefix: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.mkdir(f"{prefix}a")
        archive.writestr(f"{prefix}zarr.json", "{}")
        archive.writestr(f"{prefix}a/c/0", b"0123456789" * 100)
        archive.writestr("__MACOSX/._log", "")
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", ["", "log/"])
def test_a_zip_file_is_read_wherever_the_log_lies_in_it(tmp_path: Path, prefix: str, compression: int) -> None:
    store = open_store(write_zip(tmp_path / "log.zip", prefix, compression))
    assert store.read("zarr.json", 0, 100) == b"{}"
    assert store.read("a/c/0", 995, 3) == b"567"
    assert store.read("a/c/0", 1000) == store.read("a/c/0", 5, 0) == b""
    assert store.size("a/c/0") == 1000
    assert dict(store.list("a")) == {"a/c/0": 1000}
    assert dict(store.list()).keys() >= {"zarr.json", "a/c/0"}
    for key in ("a", "a/c", "b"):
        assert not store.exists(key)
        with pytest.raises(FileNotFoundError):
            store.read(key)
    with pytest.raises(DamagedError, match="escapes"):
        store.read("../a")


def test_a_zip_file_is_never_written(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "log.zip")
    store = open_store(path)
    store.sync()
    for change in (
        lambda: store.write("a", []),
        lambda: store.create("a", []),
        lambda: store.delete(""),
        lambda: open_store(path, writable=True),
    ):
        with pytest.raises(UsageError) as caught:
            change()
        assert caught.value.hint
        assert "zip -0 -r" in caught.value.hint
    assert isinstance(open_store(tmp_path / "new.zip", writable=True), Store)


def test_a_damaged_zip_file_is_damage(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "log.zip")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0123456789", b"0123456780", 1))
    with pytest.raises(DamagedError, match=r"a/c/0.*CRC"):
        open_store(path).read("a/c/0")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedError, match=r"log\.zip"):
        open_store(path)


def test_a_bomb_in_a_zip_file_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcleaner.formats.zip_files.OBJECT_BYTES", 999)
    store = open_store(write_zip(tmp_path / "log.zip", compression=zipfile.ZIP_DEFLATED))
    assert store.read("a/c/0", 0, 20) == b"0123456789" * 2
    with pytest.raises(DamagedError, match="at most"):
        store.read("a/c/0")


def test_a_size_that_a_packed_object_cannot_have_is_damage(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "log.zip", compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    place = data.rindex((1000).to_bytes(4, "little"))
    data[place : place + 4] = (1 << 31).to_bytes(4, "little")
    path.write_bytes(data)
    assert_unpacked_never(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_cannot_be_unpacked_by_parts_is_damage(tmp_path: Path, compression: int) -> None:
    assert_unpacked_never(write_zip(tmp_path / "log.zip", compression=compression))


def assert_unpacked_never(path: Path) -> None:
    store = open_store(path)
    assert dict(store.list("a")) == {"a/c/0": 0}
    for use in (store.size, lambda key: store.read(key, 0, 20)):
        with pytest.raises(DamagedError, match=r"a/c/0.*stored or deflated"):
            use("a/c/0")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_whatever_happens_to_a_zip_file_is_damage(tmp_path: Path, compression: int) -> None:
    path = write_zip(tmp_path / "log.zip", compression=compression)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for byte in {0, 0xFF, whole[place] ^ 0x80} - {whole[place]}:
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            with suppress(DamagedError):
                store = open_store(path)
                for key, _ in store.list():
                    with suppress(DamagedError):
                        store.read(key)


def test_a_zip_store_of_zarrs_is_read_and_its_damage_found(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "log.zip")
    with zarr.storage.ZipStore(path) as backend:
        store = open_store(backend)
        assert store.read("zarr.json") == b"{}"
        assert dict(store.list("a")) == {"a/c/0": 1000}
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456780", 1))
    with zarr.storage.ZipStore(path) as backend, pytest.raises(DamagedError, match=r"a/c/0.*CRC"):
        open_store(backend).read("a/c/0")
