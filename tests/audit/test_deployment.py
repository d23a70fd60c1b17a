"""`audit --evaluate --deploy --stress`: what it writes, shows and refuses."""

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from lmcleaner.audit.check import audit_model
from lmcleaner.audit.deployment import deployment, deployment_problem
from lmcleaner.audit.evaluation import EvaluationRows, rows_to_evaluate, score_models
from lmcleaner.audit.measuring import evaluation_checks
from lmcleaner.audit.options import AuditOptions
from lmcleaner.audit.statements import stated_forget_set
from lmcleaner.audit.stress import relearning_rate
from lmcleaner.choices import Rounding
from lmcleaner.cli.main import app
from lmcleaner.evaluation.comparison import Side, compare
from lmcleaner.evaluation.parts import PartRows
from lmcleaner.evaluation.rounding import LEVELS, rounded_model
from lmcleaner.evaluation.scores import Part
from lmcleaner.formats.audit_document import read_audit, schema_problems
from lmcleaner.formats.errors import InsufficientLogError, UsageError
from lmcleaner.progress import Silent
from lmcleaner.training.models import load_model
from tiny_runs import TinyRun, parameters_in, record_tiny, rows, same_bits, unlearn_tiny, write_rows


@dataclass(frozen=True)
class Audited:
    """A run that learned its rows, the secant's result, and what the command said of it."""

    run: TinyRun
    folder: Path
    before: dict[str, Any]
    result: Result

    @property
    def evaluation(self) -> dict[str, Any]:
        found: dict[str, Any] = read_audit(self.folder)["evaluation"]
        return found


@pytest.fixture(scope="module")
def audited(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Audited:
    folder = tmp_path_factory.mktemp("learned")
    run = record_tiny(base_model, folder, epochs=10, num_forget=6)
    unlearn_tiny(run, folder / "secant")
    (folder / "rows").mkdir()
    for name, content in {"forget": rows(20)[-6:], "retain": rows(20)[:4]}.items():
        asked = [row | {"paraphrased_question": f"in the mill {row['question']}"} for row in content]
        write_rows(folder / "rows" / f"{name}.jsonl", asked)
    before = parameters_in(folder / "secant")
    arguments = ["audit", str(folder / "secant"), "--log", str(run.log), "--evaluate", str(folder / "rows")]
    result = CliRunner().invoke(app, [*arguments, "--deploy", "bf16,int4", "--stress", "--relearn-lr", "0.003"])
    return Audited(run, folder / "secant", before, result)


def test_the_secant_is_gold_however_it_is_rounded(audited: Audited) -> None:
    assert audited.result.exit_code == 0, audited.result.output
    found = audited.evaluation["deployment"]
    assert list(found) == ["bf16", "int4"]
    for rounded in found.values():
        assert rounded["metrics"].keys() == audited.evaluation["metrics"].keys()
        assert all(metric["unlearned"] == metric["gold"] for metric in rounded["metrics"].values())
        returned = rounded["returned"]["forget_Q_A_Prob"]
        assert returned == {"exact": 0.0, "rounded": 0.0, "low": 0.0, "high": 0.0, "came_back": "no"}
    exact, int4 = (it["metrics"]["forget_Q_A_Prob"] for it in (audited.evaluation, found["int4"]))
    assert exact["gold"] != int4["gold"]
    assert deployment_problem(found) is None


def test_the_secant_relearns_as_gold_does(audited: Audited) -> None:
    found = audited.evaluation["stress"]["relearning"]
    assert (found["lr"], found["rows"], found["steps"]) == (0.003, {"learned": 3, "measured": 3}, [0, 1, 2, 5, 10, 20])
    assert found["unlearned"] == found["gold"]
    assert all(len(set(curve)) > 1 for curve in found["gold"].values())
    assert {name: one["faster"] for name, one in found["lead"].items()} == {"probability": "no", "rougeL_recall": "no"}


def test_parts_with_questions_in_other_words_are_asked_so(audited: Audited) -> None:
    found, exact = audited.evaluation["stress"]["reworded"], audited.evaluation["metrics"]
    assert found["rows"] == {"forget": 6, "retain": 4}
    assert found["metrics"]["forget_Q_A_Prob"]["before"] != exact["forget_Q_A_Prob"]["before"]
    assert found["metrics"]["forget_Q_A_Prob"]["unlearned"] == found["metrics"]["forget_Q_A_Prob"]["gold"]


def test_the_document_is_valid_and_the_model_is_as_it_was(audited: Audited) -> None:
    assert schema_problems(read_audit(audited.folder)) == []
    assert same_bits(parameters_in(audited.folder), audited.before)
    again = audit_model(audited.folder, audited.run.log)
    assert again.passed
    assert again.checks["files"] is None


def test_what_is_shown(audited: Audited) -> None:
    lines = audited.result.stdout.splitlines()
    assert {line.split()[0]: line.split()[1] for line in lines[:20] if line}.items() >= {
        "deployment": "ok", "relearning": "ok"
    }.items()  # fmt: skip
    (header,) = [line for line in lines if "As it is" in line]
    assert header.split() == ["Metric", "As", "it", "is", "bf16", "int4"]
    row = next(line for line in lines[lines.index(header) :] if "forget_Q_A_Prob" in line)
    found = audited.evaluation["deployment"]["int4"]["metrics"]["forget_Q_A_Prob"]
    assert row.split()[-2:] == [f"{found['unlearned']['value']:.4g}", f"({found['gold']['value']:.4g})"]
    assert any(line.startswith("int4: nothing came back; of what was to forget there was and is: ") for line in lines)
    assert "relearning: 3 rows to forget are trained on, lr 0.003; 3 others are measured, LMCleaner (gold)" in lines
    assert "paraphrased questions: 6 forget, 4 retain" in lines


def _hidden(before: Any, gradient_of: Any) -> Any:
    """A model that forgets by changes of less than half a step of int4, and keeps each channel's largest weight."""
    hidden = copy.deepcopy(before)
    loss = gradient_of(hidden)
    loss.backward()
    after = dict(rounded_model(before, Rounding.INT8).named_parameters())
    with torch.no_grad():
        for name, weight in hidden.named_parameters():
            if weight.ndim == 2 and not torch.equal(weight, after[name]):  # those that int8 rounds
                largest = weight.abs().amax(1, keepdim=True)
                moved = weight + 0.49 * largest / LEVELS[Rounding.INT4] * weight.grad.sign()
                weight.copy_(torch.where(weight.abs() < 0.9 * largest, moved, weight))
    hidden.zero_grad()
    return hidden


@pytest.fixture(scope="module")
def of_the_log(audited: Audited) -> EvaluationRows:
    log = audited.run.open()
    return rows_to_evaluate(log, stated_forget_set(read_audit(audited.folder)), "log", None, Silent())


def test_what_was_hidden_within_a_step_comes_back(audited: Audited, of_the_log: EvaluationRows) -> None:
    before = rounded_model(load_model(str(audited.run.trained), torch.float32), Rounding.INT4)
    forget = of_the_log.parts[Part.FORGET].samples

    def loss(model: Any) -> Any:
        tokens = [(torch.tensor(it.tokens).long()[None], torch.tensor(it.labels).long()[None]) for it in forget]
        return sum(model(input_ids=ids, labels=labels).loss for ids, labels in tokens)

    models = {
        Side.BEFORE: before, Side.UNLEARNED: _hidden(before, loss),
        Side.GOLD: load_model(str(audited.folder), torch.float32),
    }  # fmt: skip
    exact = compare(score_models(models, of_the_log.parts, of_the_log.tokenizer, Silent()))
    found = deployment(models, of_the_log, exact, [Rounding.INT8, Rounding.INT4], Silent())
    returned = {name: rounded["returned"]["forget_Q_A_Prob"] for name, rounded in found.items()}
    assert returned["int4"]["exact"] < 0.85
    assert returned["int4"]["rounded"] == 1.0  # the very model before
    assert returned["int4"]["came_back"] == "yes"
    assert returned["int8"]["came_back"] == "no"
    problem = deployment_problem(found)
    assert problem is not None
    assert problem.startswith("forgetting came back: int4 (forget_Q_A_Prob")
    assert "int8" not in problem
    void = {"int4": found["int4"] | {"void": "void: it forgot by itself"}}
    assert deployment_problem(void) is None


def test_each_finding_is_a_check() -> None:
    shares = {"forget_Q_A_Prob": {"came_back": "yes"}, "extraction_strength": {"came_back": "unclear"}}
    leads = {"probability": {"faster": "yes"}, "rougeL_recall": {"faster": "unclear"}}
    evaluation = {
        "void": None,
        "deployment": {"int8": {"void": None, "returned": {}}, "int4": {"void": None, "returned": shares}},
        "stress": {"relearning": {"lead": leads}},
    }
    assert evaluation_checks(evaluation) == {
        "evaluation": None,
        "deployment": "forgetting came back: int4 (forget_Q_A_Prob)",
        "relearning": "traces are left: it relearns faster than gold, by probability",
    }
    assert evaluation_checks({"void": "void: why"}) == {"evaluation": "void: why"}


def test_the_rate_is_the_runs_largest(audited: Audited, of_the_log: EvaluationRows) -> None:
    log = audited.run.open()
    assert relearning_rate(log, of_the_log, None) == max(log.step(step).lr[0] for step in range(log.num_steps))
    assert relearning_rate(log, of_the_log, 0.5) == 0.5
    few = EvaluationRows(
        parts={Part.FORGET: PartRows(samples=of_the_log.parts[Part.FORGET].samples[:3])},
        digests={}, tokenizer=None,
    )  # fmt: skip
    with pytest.raises(InsufficientLogError, match="expected 4 rows to forget at least, found 3"):
        relearning_rate(log, few, None)


def test_the_rate_of_another_optimizer_serves_not(base_model: Path, tmp_path: Path, of_the_log: EvaluationRows) -> None:
    run = record_tiny(base_model, tmp_path, epochs=1, optimizer="sgd", lr=0.1)
    with pytest.raises(UsageError, match="the run's learning rate is for SGD") as caught:
        relearning_rate(run.open(), of_the_log, None)
    assert caught.value.hint == "choose one with --relearn-lr"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deploy": ["int4"]}, "expected --evaluate beside --deploy"),
        ({"stress": True}, "expected --evaluate beside --stress"),
        ({"evaluate": "log", "deploy": ["int3"]}, "--deploy: expected one of"),
        ({"evaluate": "log", "relearn_lr": 0.1}, "--relearn-lr is the learning rate of --stress: expected both"),
        ({"evaluate": "log", "stress": True, "relearn_lr": -1.0}, "--relearn-lr: expected above 0"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AuditOptions(**options)


def test_rows_without_questions_in_other_words_are_named(audited: Audited, tmp_path: Path) -> None:
    copied = shutil.copytree(audited.folder, tmp_path / "copied")
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "forget.jsonl", rows(20)[-6:])
    arguments = ["audit", str(copied), "--log", str(audited.run.log), "--gold", str(audited.folder)]
    result = CliRunner().invoke(app, [*arguments, "--evaluate", str(tmp_path / "rows"), "--stress", "--json"])
    assert json.loads(result.stdout)["evaluation"]["stress"]["reworded"] is None
