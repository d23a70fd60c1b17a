"""Pages hold what was found, are well-formed and self-contained, and nothing in them is taken for markup."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from lmcleaner.audit.check import AuditReport, audit_model
from lmcleaner.audit.options import AuditOptions
from lmcleaner.cli.main import app
from lmcleaner.formats.audit_document import Document, read_audit, schema_problems
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.reporting.audit_page import audit_page
from lmcleaner.reporting.log_page import log_page
from lmcleaner.reporting.markup import MAX_ROWS, table, tag
from lmcleaner.reporting.texts import MISSING, REDACTED
from long_log import HOSTILE
from page_checker import PageChecker
from tiny_runs import TinyRun, record_tiny, rows, unlearn_tiny

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Made:
    """An output folder, its audit, and the log."""

    run: TinyRun
    folder: Path
    report: AuditReport

    def page(self, **options: Any) -> str:
        return audit_page(self.report, self.folder, str(self.run.log), **options)


@pytest.fixture(scope="module")
def made(adamw_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made") / "out"
    unlearn_tiny(adamw_run, folder, "GGN", oracle=True)
    return Made(adamw_run, folder, audit_model(folder, adamw_run.log, AuditOptions(evaluate="log")))


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _problems(page: str) -> list[str]:
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    return PageChecker(page).problems


def test_a_page_of_an_audit_is_whole(made: Made) -> None:
    page = made.page()
    assert _problems(page) == []
    assert "://" not in page
    checker = PageChecker(page)
    assert checker.headings[0] == 1
    assert set(checker.headings[1:]) == {2}
    text = " ".join(checker.text)
    document = made.report.document
    for shown in (
        "What was asked", "What was done", "Coverage", "Windows", "Deviation", "Error measures", "Against the oracle",
        "Evaluation", "Hashes", "Checks", "Verify again", *document["hashes"].values(), *document["request"]["samples"],
        *document["result"]["reasons"], *made.report.checks, "lmcleaner audit verify",
    ):  # fmt: skip
        assert shown in text, shown
    metric = made.report.evaluation["metrics"]["forget_Q_A_Prob"] if made.report.evaluation else {}
    assert f"{metric['before']['value']:.4g} [{metric['before']['low']:.4g}," in text
    assert "↓\u00a0lower" in text


def test_the_deviation_is_drawn_from_its_norms(made: Made) -> None:
    window = made.report.document["windows"][0]
    norms = {int(step): norm for step, norm in window["norms"].items()}
    assert [*norms] == [*range(window["tz"] + 1, window["tau"] + 1)]
    assert (norms[window["tz"] + 1], max(norms.values()), norms[window["tau"]]) == (
        window["v0_norm"], window["v_peak_norm"], window["v_norm"]
    )  # fmt: skip
    assert f"to {window['v_norm']:.4g} at step {window['tau']}; lowest" in made.page()


def test_text_of_rows_is_shown_only_to_who_asks(made: Made) -> None:
    forgotten = rows(20)[-2:]
    contents = [row[key] for row in rows(20) for key in ("question", "answer")]
    assert not any(f" {content} " in made.page() for content in contents if " " in content)
    shown = made.page(show_text=True)
    assert all(row["question"] in shown and row["answer"] in shown for row in forgotten)
    assert rows(20)[0]["question"] not in shown
    assert _problems(shown) == []


def test_changes_of_the_logs_own_rows_are_named_by_digests(made: Made, tmp_path: Path) -> None:
    values = json.loads((made.folder / "evals" / "before" / "TOFU_EVAL.json").read_text())["forget_Q_A_Prob"]
    cells = [f"</code></th><td>{row['prob']:.4g}</td>" for row in values["value_by_index"].values()]
    assert all(made.page().count(cell) == 1 for cell in cells)
    folder = Path(shutil.copytree(made.folder, tmp_path / "others"))
    document = read_audit(folder)
    document["evaluation"]["rows"]["forget"]["sha256"] = "0" * 64
    (folder / "audit.json").write_text(json.dumps(document))
    page = audit_page(replace(made.report, evaluation=None), folder, str(made.run.log))
    assert '<th scope="row">row 1</th>' in page
    assert cells[0] not in page


def test_after_a_redaction_there_is_a_page_and_no_text(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path)
    unlearn_tiny(run, tmp_path / "out", redact=True)
    report = audit_model(tmp_path / "out", run.log)
    page = audit_page(report, tmp_path / "out", str(run.log), show_text=True)
    assert _problems(page) == []
    assert "not checked" in page
    assert page.count(f"<td>{REDACTED}</td>") + page.count(f"<td>{MISSING}</td>") == 2
    assert not any(row["question"] in page for row in rows(20))


def test_sections_without_data_are_left_out(made: Made, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(made.folder, tmp_path / "bare"))
    document = read_audit(bare)
    del document["evaluation"]
    (bare / "audit.json").write_text(json.dumps(document | {"oracle": None}))
    shutil.rmtree(bare / "evals")
    report = replace(made.report, document=document | {"oracle": None}, evaluation=None)
    page = audit_page(report, bare, str(made.run.log))
    assert not {'<h2 id="evaluation">', '<h2 id="against-the-oracle">'} & set(re.findall(r"<h2[^>]*>", page))
    assert _problems(page) == []


def test_a_document_that_breaks_its_schema_is_not_shown(made: Made, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(made.folder, tmp_path / "broken"))
    document = read_audit(broken)
    document["windows"] = HOSTILE
    (broken / "audit.json").write_text(json.dumps(document))
    page = audit_page(audit_model(broken, made.run.log), broken, str(made.run.log))
    assert "✗ The audit FAILED: schema." in page
    assert "What was done" not in page
    assert _problems(page) == []


def _strings(document: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a document has texts."""
    if isinstance(document, str):
        return [place]
    parts: Any = document.items() if isinstance(document, dict) else ()
    parts = enumerate(document) if isinstance(document, list) else parts
    return [found for key, part in parts for found in _strings(part, (*place, key))]


def _with(document: Document, place: tuple[Any, ...], value: object) -> Document:
    changed: Document = json.loads(json.dumps(document))
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def test_no_text_of_a_document_becomes_markup(made: Made, tmp_path: Path) -> None:
    """Every text that the schema leaves free is hostile, and so are names and what checks say."""
    document = read_audit(made.folder)
    document["result"]["reasons"] = [HOSTILE]
    document["files"] = {HOSTILE: "0" * 64}
    document["windows"][0] |= {"left_out": HOSTILE, "v_peak_norm": {HOSTILE: HOSTILE}, "linearization_errors": HOSTILE}
    document["config"]["thresholds"] = {"settled": HOSTILE, "surviving": 0.5}
    document["evaluation"]["metrics"][HOSTILE] = document["evaluation"]["metrics"]["forget_kl"]
    document["evaluation"]["rows"][HOSTILE] = document["evaluation"]["rows"]["forget"]
    document["evaluation"]["void"] = HOSTILE
    for place in _strings(document):
        changed = _with(document, place, HOSTILE)
        document = document if schema_problems(changed) else changed
    assert document["environment"]["device"] == HOSTILE
    folder = Path(shutil.copytree(made.folder, tmp_path / HOSTILE.replace("/", "")))
    (folder / "audit.json").write_text(json.dumps(document))
    report = AuditReport(
        checks={"schema": None, HOSTILE: HOSTILE}, unchecked={HOSTILE: HOSTILE}, document=document, oracle=None
    )
    page = audit_page(report, folder, str(made.run.log))
    assert _problems(page) == []
    assert page.count("&lt;script&gt;") > 10
    assert HOSTILE in PageChecker(page).text


@pytest.mark.parametrize("steps", [10**400, 1 << 60], ids=["beyond a float", "beyond a picture"])
def test_a_document_of_nonsense_is_still_a_page(steps: int, made: Made) -> None:
    document = json.loads(json.dumps(made.report.document))
    nonsense = {"tz": steps, "tau": steps, "v_norm": 1e308, "v0_norm": None, "norms": {"5": 1e308, "9" * 40: 1.0}}
    document["windows"] = [document["windows"][0] | nonsense] * 1_500
    document["request"]["steps"] = [steps]
    assert schema_problems(document) == []
    page = audit_page(replace(made.report, document=document), made.folder, str(made.run.log))
    assert _problems(page) == []
    assert f"the first {MAX_ROWS:,} of 1,500" in page
    assert len(page) < 3_000_000


@given(st.text(), st.text())
def test_any_text_comes_back_as_it_was(content: str, value: str) -> None:
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
            assert (name, attributes) == ("p", [("class", value)])

        def handle_data(self, text: str) -> None:
            seen.append(text)

    reader = Reader()
    reader.feed(tag("p", content, class_=value))
    reader.close()
    assert "".join(seen) == content


def test_a_column_without_a_value_is_left_out() -> None:
    shown = table("Things", ["Name", "First", "Second"], [["a", None, 1], ["b", None, None]])
    assert "First" not in shown
    assert shown.count("<td>") == 2
    assert table("Things", ["Name"], []) == ""


def test_the_page_of_a_long_log_is_small_and_whole(long_log: TrainingLog) -> None:
    long_page = log_page(long_log)
    assert len(long_page.encode()) < 500_000
    assert _problems(long_page) == []
    assert "://" not in long_page
    assert HOSTILE in PageChecker(long_page).text
    for shown in ("10,000 of 10,000 planned", "Learning rate of parameter group 1", "clipped at 1", "20 checkpoints"):
        assert shown in long_page, shown
    assert '<th scope="row">200</th><td>400</td>' in long_page
    norms = long_log.table("steps/gradient_norm")
    assert f"highest {norms.max():.4g} at step {norms.argmax():,}" in long_page


def test_the_page_of_a_log_holds_no_content_of_a_row(adamw_run: TinyRun) -> None:
    page = log_page(adamw_run.open())
    assert _problems(page) == []
    assert not any(row["question"] in page for row in rows(20))


def test_the_commands_write_pages_and_overwrite_nothing(made: Made, tmp_path: Path) -> None:
    page, log = tmp_path / "new" / "report.html", made.run.log
    done = _run("audit", made.folder, "--log", log, "--html", page, "--show-text", "--json")
    assert json.loads(done.stdout)["passed"], done.output
    assert rows(20)[-1]["question"] in page.read_text()
    before = page.read_bytes()
    for command in (("audit", made.folder, "--log", log), ("inspect", log)):
        refused = _run(*command, "--html", page)
        assert refused.exit_code == 11
        assert "choose another --html; nothing is overwritten" in refused.stderr
    assert page.read_bytes() == before
    shown = _run("inspect", log, "--html", tmp_path / "log.html", "--json")
    assert json.loads(shown.stdout) == {"page": str(tmp_path / "log.html")}
    assert {file.name for file in tmp_path.iterdir()} == {"new", "log.html"}


def test_text_without_a_page_is_refused(made: Made) -> None:
    refused = _run("audit", made.folder, "--log", made.run.log, "--show-text")
    assert refused.exit_code == 2
    assert "--show-text belongs to --html" in refused.stderr
    assert _run("inspect", made.run.log, "--html", "x.html", "--sizes").exit_code == 2


def test_text_can_be_read_on_every_ground() -> None:
    """Contrast of WCAG 2.2, AA: 4.5 for text."""
    style = (ROOT / "lmcleaner" / "reporting" / "page.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(schemes) == 3
    for scheme in schemes:
        for ink in ("ink", "quiet", "line", "limit", "good", "bad"):
            for ground in ("paper", "band"):
                assert _contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)


def _contrast(left: str, right: str) -> float:
    low, high = sorted(map(_luminance, (left, right)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
