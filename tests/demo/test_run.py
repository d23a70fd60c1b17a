"""The demonstration removes its own folder only."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "demo" / "run.py"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], check=False, capture_output=True, text=True)


def test_a_folder_that_the_demo_did_not_make_is_left_as_it_is(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    found = _run(str(tmp_path))
    assert found.returncode == 11
    assert "error: not a folder that the demo made" in found.stderr
    assert "\n\nhint: " in found.stderr
    assert precious.read_text() == "mine"


def test_a_file_or_a_link_in_the_folders_place_is_left_as_it_is(tmp_path: Path) -> None:
    file, link, target = tmp_path / "file", tmp_path / "link", tmp_path / "target"
    file.write_text("mine")
    target.mkdir()
    link.symlink_to(target)
    assert [_run(str(place)).returncode for place in (file, link)] == [11, 11]
    assert file.read_text() == "mine"
    assert link.is_symlink()


def test_unknown_arguments_are_wrong_usage() -> None:
    assert _run("--fast").returncode == 2
    assert _run("one", "two").returncode == 2
    assert _run("--help").returncode == 0
