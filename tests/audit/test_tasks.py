"""`audit --evaluate … --tasks`: general-ability tasks, run by the lm-evaluation-harness."""

import copy
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from lmcleaner.audit.check import audit_model
from lmcleaner.audit.options import AuditOptions
from lmcleaner.audit.tasks import tasks_document
from lmcleaner.cli.main import app
from lmcleaner.evaluation.comparison import Side
from lmcleaner.evaluation.tasks import Tasks, load_tasks
from lmcleaner.formats.audit_document import read_audit, schema_problems
from lmcleaner.formats.errors import NotFoundError, UsageError
from lmcleaner.reporting.audit_page import audit_page
from lmcleaner.training.models import load_model, load_tokenizer
from long_log import HOSTILE
from page_checker import PageChecker
from tiny_runs import TinyRun, record_tiny, rows, unlearn_tiny, write_rows

LIMIT = 10


@dataclass(frozen=True)
class Learned:
    """A run that learned its rows, and the secant's result."""

    run: TinyRun
    folder: Path

    def audit(self, *options: object) -> Result:
        arguments = ["audit", self.folder, "--log", self.run.log, "--evaluate", "log", *options]
        return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def learned(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    folder = tmp_path_factory.mktemp("learned")
    run = record_tiny(base_model, folder, epochs=10)
    unlearn_tiny(run, folder / "secant")
    return Learned(run, folder / "secant")


def _questions(seed: int) -> list[dict[str, Any]]:
    """The right answer among four, of which the others are those of the next rows."""
    found = rows(20)
    answers = [row["answer"] for row in found]
    return [
        {
            "question": row["question"],
            "choices": [answers[(place + offset) % 20] for offset in range(4)],
            "label": 0,
        }
        for place, row in enumerate(found[seed:] + found[:seed])
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks in the harness's form, and a group of both."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, seed in {"streets": 0, "mills": 7}.items():
        data = write_rows(folder / f"{name}.jsonl", _questions(seed))
        task = {
            "task": name, "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
            "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "label",
            "metric_list": [
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
            ],
            "metadata": {"version": 3},
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    group = {"group": "town", "task": ["streets", "mills"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "town.yaml").write_text(yaml.safe_dump(group))
    return folder


@pytest.fixture(scope="module")
def audited(learned: Learned, folder: Path) -> Result:
    return learned.audit("--tasks", "town", "--tasks-path", folder, "--tasks-limit", LIMIT)


def _accuracy(model: Path, questions: list[dict[str, Any]], base: Path) -> float:
    """How often the right answer's tokens are more probable than the others', one after the other."""
    module, tokenizer = load_model(str(model), torch.float32).eval(), load_tokenizer(str(base))

    def score(question: str, answer: str) -> float:
        prompt, whole = (tokenizer(text).input_ids for text in (question, f"{question} {answer}"))
        with torch.no_grad():
            logits = module(torch.tensor([whole])).logits[0].log_softmax(-1)
        return float(sum(logits[place - 1, whole[place]] for place in range(len(prompt), len(whole))))

    scores = [[score(row["question"], choice) for choice in row["choices"]] for row in questions]
    right = [bool(one.index(max(one)) == row["label"]) for one, row in zip(scores, questions, strict=True)]
    return sum(right) / len(right)


def test_the_accuracy_is_that_of_the_models(audited: Result, learned: Learned) -> None:
    assert audited.exit_code == 0, audited.output
    found = read_audit(learned.folder)["evaluation"]["tasks"]
    assert list(found["results"]) == ["town", "streets", "mills"]
    for name, seed in {"streets": 0, "mills": 7}.items():
        accuracy = found["results"][name]["metrics"]["acc"]
        questions = _questions(seed)[:LIMIT]
        assert accuracy["before"]["value"] == _accuracy(learned.run.trained, questions, learned.run.base)
        assert accuracy["unlearned"]["value"] == _accuracy(learned.folder, questions, learned.run.base)
        value = accuracy["before"]["value"]
        assert 0 < value < 1
        assert accuracy["before"]["stderr"] == pytest.approx((value * (1 - value) / (LIMIT - 1)) ** 0.5)


def test_the_document_holds_what_the_harness_says(audited: Result, learned: Learned) -> None:
    document = read_audit(learned.folder)
    assert schema_problems(document) == []
    found = document["evaluation"]["tasks"]
    assert found["limit"] == LIMIT
    streets, town = found["results"]["streets"], found["results"]["town"]
    assert (streets["rows"], streets["shots"], streets["version"]) == (LIMIT, 0, "3")
    assert town["rows"] == 2 * LIMIT
    assert {name: metric["direction"] for name, metric in streets["metrics"].items()} == {
        "acc": "higher", "brier_score": "lower"
    }  # fmt: skip
    assert streets["metrics"]["brier_score"]["before"]["stderr"] is None
    mills = found["results"]["mills"]["metrics"]["acc"]["before"]["value"]
    assert town["metrics"]["acc"]["before"]["value"] == pytest.approx(
        (streets["metrics"]["acc"]["before"]["value"] + mills) / 2
    )
    for task in found["results"].values():
        assert all(metric["unlearned"] == metric["gold"] for metric in task["metrics"].values())
    assert audit_model(learned.folder, learned.run.log).passed


def test_the_terminal_shows_it_and_nothing_of_the_harness(audited: Result, learned: Learned) -> None:
    lines = audited.stdout.splitlines()
    (head,) = [line for line in lines if line.startswith("tasks of the lm-evaluation-harness")]
    assert head.endswith(f", at most {LIMIT} rows each, ± its standard errors")
    found = read_audit(learned.folder)["evaluation"]["tasks"]["results"]["streets"]["metrics"]["acc"]["before"]
    row = next(line for line in lines[lines.index(head) :] if line.strip().startswith("streets"))
    assert row.split()[:5] == ["streets", str(LIMIT), "acc", "↑", f"{found['value']:.4g}"]
    assert "it/s" not in audited.output


def test_what_there_is_not_is_said_before_anything_is_computed(learned: Learned, folder: Path, tmp_path: Path) -> None:
    unknown = learned.audit("--tasks", "street", "--tasks-path", folder)
    assert unknown.exit_code == NotFoundError.exit_code
    assert "--tasks: no such task: street" in unknown.stderr
    assert "did you mean" in unknown.stderr
    with pytest.raises(NotFoundError, match="no such folder of tasks"):
        load_tasks(["streets"], tmp_path / "nowhere", None)
    task = yaml.safe_load((folder / "streets.yaml").read_text())
    task["dataset_kwargs"]["data_files"]["test"] = str(tmp_path / "nowhere.jsonl")
    (tmp_path / "streets.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(NotFoundError, match=r"--tasks: streets can't be loaded: .*nowhere.jsonl") as unloaded:
        load_tasks(["streets"], tmp_path, None)
    assert "--tasks-path" in str(unloaded.value.hint)
    task["dataset_kwargs"]["data_files"]["test"] = str(folder / "streets.jsonl")
    (tmp_path / "streets.yaml").write_text(yaml.safe_dump(task | {"unsafe_code": True}))
    with pytest.raises(UsageError, match="streets runs code that the models write"):
        load_tasks(["streets"], tmp_path, None)


def test_without_the_harness_it_says_which_extra_has_it(learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(NotFoundError, match="--tasks needs the lm_eval library") as caught:
        audit_model(learned.folder, learned.run.log, AuditOptions(evaluate="log", tasks=["mmlu"]))
    assert caught.value.hint == "`pip install 'lmcleaner[tasks]'`"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["mmlu"]}, "expected --evaluate beside --tasks"),
        ({"evaluate": "log", "tasks_path": Path("x")}, "--tasks-path: expected --tasks beside it"),
        ({"evaluate": "log", "tasks_limit": 3}, "--tasks-limit: expected above 0, and --tasks beside it, found 3"),
        ({"evaluate": "log", "tasks": ["mmlu"], "tasks_limit": 0}, "--tasks-limit: expected above 0"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AuditOptions(**options)


def _results(accuracy: float) -> dict[str, Any]:
    """What the harness returns: a task with two filters, a metric that it says nothing of, a group without any."""
    return {
        "results": {
            "sums": {
                "name": "sums", "alias": "sums", "sample_len": 5, "exact_match,strict": accuracy,
                "exact_match_stderr,strict": 0.125, "exact_match,last": 1.0, "exact_match_stderr,last": 0.0,
                "length,none": float("nan"), "length_stderr,none": "N/A",
            },
            "all": {"name": "all", "alias": "all"},
        },
        "n-shot": {"sums": 5}, "versions": {"sums": 2.0},
        "higher_is_better": {"sums": {"exact_match": True, "length": None}},
    }  # fmt: skip


def _document() -> dict[str, Any]:
    tasks = Tasks(names=("all",), loaded={}, limit=None, harness="0.4.13")
    sides = {side: _results(value) for side, value in zip(Side, (0.75, 0.5, 0.25), strict=True)}
    return tasks_document(sides, tasks)


def test_filters_are_named_and_what_the_harness_does_not_say_is_null() -> None:
    document = _document()
    assert document["results"].keys() == {"sums"}
    sums = document["results"]["sums"]
    assert (sums["rows"], sums["shots"], sums["version"]) == (5, 5, "2.0")
    assert sums["metrics"].keys() == {"exact_match, strict", "exact_match, last", "length"}
    assert sums["metrics"]["exact_match, strict"] == {
        "direction": "higher", "before": {"value": 0.75, "stderr": 0.125},
        "unlearned": {"value": 0.5, "stderr": 0.125}, "gold": {"value": 0.25, "stderr": 0.125},
    }  # fmt: skip
    assert sums["metrics"]["length"]["direction"] == "unknown"
    assert sums["metrics"]["length"]["gold"] == {"value": None, "stderr": None}


def test_the_page_shows_them_and_takes_nothing_for_markup(learned: Learned, tmp_path: Path) -> None:
    done = learned.audit("--json")
    assert done.exit_code == 0, done.output
    copied = Path(shutil.copytree(learned.folder, tmp_path / "copied"))
    document = read_audit(copied)
    document["evaluation"]["tasks"] = tasks = _document()
    tasks["results"][HOSTILE] = copy.deepcopy(tasks["results"]["sums"])
    tasks["results"][HOSTILE]["metrics"][HOSTILE] = tasks["results"]["sums"]["metrics"]["length"]
    tasks["harness"], tasks["limit"] = HOSTILE, 10**400
    assert schema_problems(document) == []
    (copied / "audit.json").write_text(json.dumps(document))
    report = replace(audit_model(copied, learned.run.log), evaluation=None)
    checker = PageChecker(audit_page(report, copied, str(learned.run.log)))
    assert checker.problems == []
    text = " ".join(checker.text)
    assert "sums 5 exact_match, strict ↑\u00a0higher 0.75 ± 0.125 0.5 ± 0.125 0.25 ± 0.125" in text
    assert "length not said – – –" in text
    assert checker.text.count(HOSTILE) >= 3
