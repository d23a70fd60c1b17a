"""Pages of audits that rounded, relearned and asked in other words."""

import copy
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lmcleaner.audit.check import AuditReport, audit_model
from lmcleaner.audit.options import AuditOptions
from lmcleaner.choices import Rounding
from lmcleaner.evaluation.wording import came_back
from lmcleaner.formats.audit_document import read_audit, schema_problems
from lmcleaner.reporting.audit_page import audit_page
from lmcleaner.reporting.stress_sections import deployment, relearning, reworded
from long_log import HOSTILE
from page_checker import PageChecker
from tiny_runs import TinyRun, record_tiny, rows, unlearn_tiny, write_rows

HEADINGS = ("Deployment check", "Relearning", "Paraphrased questions")


@dataclass(frozen=True)
class Made:
    """An approximate result, and its audit with all that can be asked for."""

    run: TinyRun
    folder: Path
    report: AuditReport

    @property
    def evaluation(self) -> dict[str, Any]:
        assert self.report.evaluation is not None
        return self.report.evaluation


@pytest.fixture(scope="module")
def made(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("stressed")
    run = record_tiny(base_model, folder, epochs=8, num_forget=4)
    unlearn_tiny(run, folder / "out", "GGN")
    (folder / "rows").mkdir()
    asked = [row | {"paraphrased_question": f"in the mill {row['question']}"} for row in rows(20)]
    write_rows(folder / "rows" / "forget.jsonl", asked[-4:])
    write_rows(folder / "rows" / "retain.jsonl", asked[:4])
    options = AuditOptions(
        evaluate=str(folder / "rows"), deploy=[Rounding.BF16, Rounding.INT4], stress=True, relearn_lr=0.003
    )
    return Made(run, folder / "out", audit_model(folder / "out", run.log, options))


def _page(made: Made, report: AuditReport | None = None) -> str:
    return audit_page(report or made.report, made.folder, str(made.run.log))


def _text(page: str) -> str:
    checker = PageChecker(page)
    assert checker.problems == []
    return " ".join(checker.text)


def test_every_finding_is_on_the_page(made: Made) -> None:
    page = _page(made)
    text = _text(page)
    assert set(PageChecker(page).headings[1:]) == {2}
    assert [f">{heading}</h2>" in page for heading in HEADINGS] == [True] * 3
    for rounding, rounded in made.evaluation["deployment"].items():
        assert f"{rounding}: {came_back(rounded)}" in text
        assert f"All metrics with weights rounded to {rounding}" in text
        for name, one in rounded["returned"].items():
            cells = [f"{one['exact']:.4g}", f"{one['rounded']:.4g}", f"[{one['low']:.4g},\u00a0{one['high']:.4g}]"]
            assert f"{name}, {rounding} {' '.join(cells)} {one['came_back']}" in text
        kept = rounded["metrics"]["retain_kl"]["unlearned"]
        assert f"{kept['value']:.4g} [{kept['low']:.4g},\u00a0{kept['high']:.4g}]" in text
    assert made.evaluation["deployment"]["int4"]["returned"]
    lead = made.evaluation["stress"]["relearning"]["lead"]["probability"]
    found = f"{lead['value']:.4g} [{lead['low']:.4g},\u00a0{lead['high']:.4g}]"
    assert f"answer probability {found} {lead['faster']}" in text
    asked = made.evaluation["stress"]["reworded"]["metrics"]["forget_Q_A_Prob"]["before"]
    assert f"{asked['value']:.4g} [{asked['low']:.4g},\u00a0{asked['high']:.4g}]" in text


def test_the_curves_are_drawn_and_told(made: Made) -> None:
    found = made.evaluation["stress"]["relearning"]
    section = "".join(relearning(made.evaluation).content)
    assert section.count('role="img"') == 2
    assert section.count('class="limit"') == 2
    assert section.count("(dashed: Gold)") == 2
    for metric in ("probability", "rougeL_recall"):
        own, gold = found["unlearned"][metric], found["gold"][metric]
        assert f"From {own[0]:.4g} at step 0 to {own[-1]:.4g} at step 20; lowest" in section
        assert f"Gold: From {gold[0]:.4g} at step 0 to {gold[-1]:.4g} at step 20; lowest" in section
    assert found["unlearned"]["probability"] != found["gold"]["probability"]
    marks = [found[side][metric][3] for metric in ("probability", "rougeL_recall") for side in ("unlearned", "gold")]
    assert f"step 5 {' '.join(f'{mark:.4g}' for mark in marks)} step 10" in _text(_page(made))


def test_an_earlier_evaluation_is_shown_with_all_of_it(made: Made) -> None:
    page = _page(made, replace(made.report, evaluation=None))
    assert "by an earlier audit" in page
    assert all(f">{heading}</h2>" in page for heading in HEADINGS)


def test_what_was_not_asked_for_is_left_out(made: Made) -> None:
    plain = {key: value for key, value in made.evaluation.items() if key not in {"deployment", "stress"}}
    for section in (deployment, relearning, reworded):
        assert section(plain).is_empty
        assert section(None).is_empty
    page = _page(made, replace(made.report, evaluation=plain))
    assert not any(f">{heading}</h2>" in page for heading in HEADINGS)


def test_why_something_shows_nothing_is_said(made: Made) -> None:
    evaluation = copy.deepcopy(made.evaluation)
    evaluation["deployment"]["int4"]["void"] = "void: it knew nothing"
    evaluation["deployment"]["bf16"]["returned"] = {}
    evaluation["stress"]["reworded"] = None
    text = _text(_page(made, replace(made.report, evaluation=evaluation)))
    assert "int4: void: it knew nothing" in text
    assert "bf16: no metric tells the model before from gold" in text
    assert "Paraphrased questions: the rows to forget have none." in text


def test_what_came_back_is_said_loudly() -> None:
    returned = {name: {"came_back": answer} for name, answer in {"a": "yes", "b": "no", "c": "unclear"}.items()}
    assert came_back({"void": None, "returned": returned}) == "what was forgotten CAME BACK, by a"
    del returned["a"]
    assert came_back({"void": None, "returned": returned}) == "unclear whether it came back, by c"
    del returned["c"]
    assert came_back({"void": None, "returned": returned}) == "nothing came back"


def test_a_document_of_nonsense_is_still_a_page_and_no_markup(made: Made, tmp_path: Path) -> None:
    """All that the schema leaves free: names, numbers beyond a float, curves of other lengths than the steps."""
    document = read_audit(made.folder)
    found, huge = document["evaluation"], 10**400
    returned = {"exact": huge, "rounded": -huge, "low": 1e308, "high": huge, "came_back": "yes"}
    found["deployment"]["int4"]["returned"] |= {HOSTILE: returned}
    found["deployment"]["int4"]["metrics"] = {HOSTILE: found["metrics"]["forget_kl"]}
    found["deployment"]["bf16"]["void"] = HOSTILE
    relearned = found["stress"]["relearning"]
    relearned |= {"lr": huge, "batch_size": huge, "steps": [huge, 3, 2]}
    relearned["unlearned"] = {"probability": [huge, 1e308], "rougeL_recall": [], HOSTILE: [1]}
    relearned["lead"][HOSTILE] = relearned["lead"]["probability"]
    found["stress"]["reworded"] |= {"void": HOSTILE, "rows": {HOSTILE: 1}}
    assert schema_problems(document) == []
    folder = Path(shutil.copytree(made.folder, tmp_path / "copied"))
    (folder / "audit.json").write_text(json.dumps(document))
    page = audit_page(replace(made.report, evaluation=None), folder, str(made.run.log))
    assert PageChecker(page).problems == []
    assert page.count("&lt;script&gt;") >= 6
