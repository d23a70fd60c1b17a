"""The guides' scripts do what they say, by the commands that their docstrings give."""

import ast
import json
import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lmcleaner.audit.check import AuditOptions, audit_model

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "docs" / "examples").glob("*.py"))
PAGE = (ROOT / "docs" / "guides.md").read_text(encoding="utf-8")
MAIN = ("-c", "from lmcleaner.cli.main import main; main()")


def commands(script: Path, folder: Path) -> list[list[str]]:
    """The words of the docstring's commands, for another folder than they name."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    lines = [shlex.split(line) for line in re.findall(r"^(?:python|lmcleaner) .*$", text, re.MULTILINE)]
    return [[re.sub(r"^guides\b", str(folder), word) for word in line] for line in lines]


def run(words: list[str]) -> None:
    """Runs a command; what Python runs by itself in a fork of this process, so that no library is imported again."""
    if words[0] == "lmcleaner":
        subprocess.run([sys.executable, *MAIN, *words[1:]], check=True, cwd=ROOT)
        return
    assert words[0] == "python"
    process = multiprocessing.get_context("fork").Process(target=_run_here, args=(words[1:],))
    process.start()
    process.join()
    assert process.exitcode == 0


def _run_here(arguments: list[str]) -> None:
    warnings.resetwarnings()
    os.chdir(ROOT)
    if arguments[0] == "-m":
        sys.argv, sys.path[:0] = arguments[1:], [str(ROOT)]
        runpy.run_module(arguments[1], run_name="__main__")
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_guide_records_a_training_and_forgets_a_person(
    script: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in commands(script, tmp_path):
        run(words)
    assert "4 rows forgotten, verdict good" in capfd.readouterr().out.splitlines()
    made = tmp_path / script.stem
    audit = json.loads((made / "unlearned" / "audit.json").read_text(encoding="utf-8"))
    assert (audit["result"]["verdict"], len(audit["request"]["samples"])) == ("good", 4)
    assert audit_model(made / "unlearned", made / "log", AuditOptions()).passed


def test_the_page_leads_to_every_script() -> None:
    assert SCRIPTS
    for script in SCRIPTS:
        assert f"](examples/{script.name})" in PAGE
