"""The examples of docs/python-api.md run, one after the other, as a reader would type them."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tiny_runs import rows, write_rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python-api.md"


def test_the_examples_run(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(base_model, tmp_path / "my-base")
    write_rows(tmp_path / "train.jsonl", rows(20))
    write_rows(tmp_path / "forget.jsonl", rows(20)[-2:])
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.finditer(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        line = page.count("\n", 0, block.start()) + 1
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
    assert names["matches"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("not-found 10 no such forget set: nobody")
