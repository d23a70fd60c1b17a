"""Whether a model is there: a folder, a name in the hub's cache, or one that the hub knows."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

_CHECK = """
import json, sys
from lmcleaner.formats.errors import NotFoundError
from lmcleaner.training.sources import check_model
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = check_model(name)
    except NotFoundError as error:
        found[name] = error.message
print(json.dumps(found))
"""


class _Hub(BaseHTTPRequestHandler):
    """Knows one public model and one that is gated."""

    asked: list[str]

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/")
        if name != self.path:
            self.asked.append(name)
        code, headers = {
            "someone/known": (200, {}),
            "someone/gated": (403, {"X-Error-Code": "GatedRepo"}),
            "someone/busy": (500, {}),
        }.get(name, (404, {"X-Error-Code": "RepoNotFound"}))
        body = json.dumps({"id": name}).encode()
        self.send_response(code)
        for key, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """A hub that runs while a test does.

    Yields:
        Its address, and the names of models that it was asked for.
    """
    names: list[str] = []

    class Hub(_Hub):
        asked = names

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", names
        server.shutdown()
        thread.join()


def _check(*names: object, cache: Path, endpoint: str = "http://127.0.0.1:9", offline: str = "0") -> dict[str, str]:
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-c", _CHECK, *map(str, names)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**environment, "HF_HUB_OFFLINE": offline}
    )
    return dict(json.loads(done.stdout))


def _write_cached(cache: Path, name: str) -> None:
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("0" * 40) / "config.json").write_text("{}")


def test_the_hub_is_asked_once_and_what_it_knows_is_there(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    names = ("someone/known", "someone/gated", "someone/busy", "my-bas", "not..one")
    found = _check(*names, cache=tmp_path, endpoint=endpoint)
    missing = "no such folder, and no such model on the hub, or a private one"
    assert found == {
        "someone/known": None, "someone/gated": None, "someone/busy": None,
        "my-bas": f"no such model: my-bas: {missing}",
        "not..one": f"no such model: not..one: {missing}",
    }  # fmt: skip
    assert asked == ["someone/known", "someone/gated", "someone/busy", "my-bas"]


def test_folders_and_what_the_cache_holds_need_no_hub(base_model: Path, tmp_path: Path) -> None:
    _write_cached(tmp_path, "someone/cached")
    for offline in ("0", "1"):
        found = _check(base_model, "someone/cached", cache=tmp_path, offline=offline)
        assert set(found.values()) == {None}


def test_where_the_hub_cannot_be_asked_it_is_said_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    unreachable = _check("my-bas", cache=tmp_path)["my-bas"]
    offline = _check("my-bas", cache=tmp_path, offline="1")["my-bas"]
    assert time.monotonic() - start < 15  # of which most is Python's start; five tries again took 23 seconds a file
    assert "nor is it in the hub's cache, and the hub can't be reached: " in unreachable
    assert offline.endswith("nor is it in the hub's cache, and HF_HUB_OFFLINE keeps from asking the hub")


@pytest.mark.parametrize("name", ["./base", "/no/base", "~/no/base", "a/b/c", "my base"])
def test_a_path_is_never_looked_for_on_the_hub(name: str, hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    assert _check(name, cache=tmp_path, endpoint=endpoint)[name] == f"no such model: {name}: no such folder"
    assert asked == []
