"""`audit verify` measures an evaluation again, and finds every value that was changed without a signature."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tampering import changed, places, value_at, with_value

from lmcleaner.audit.agreement import Agreement
from lmcleaner.audit.asked import asked_problem
from lmcleaner.audit.evaluation import evals_files, write_evaluation
from lmcleaner.audit.holding import compare_file, held_against
from lmcleaner.audit.measuring import Measured, find_wanted, measure
from lmcleaner.audit.options import AuditOptions, VerifyOptions
from lmcleaner.audit.verify import verify_audit
from lmcleaner.choices import Rounding
from lmcleaner.formats.audit_document import as_unlearned, read_audit, schema_problems
from lmcleaner.progress import Silent
from lmcleaner.training.numerics import restored_numerics
from serving import failed_checks
from tiny_runs import TinyRun, record_tiny, rows, unlearn_tiny, write_rows

# Where something lies, and what a task is called: what isn't there is told, and nothing of it is a result.
PLACES = {("asked", "evaluate"), ("asked", "tasks_path"), ("asked", "tasks", 0)}


@dataclass(frozen=True)
class Made:
    """An approximate result with an evaluation that has every part."""

    run: TinyRun
    folder: Path
    tasks: Path
    measured: Measured

    @property
    def options(self) -> VerifyOptions:
        return VerifyOptions(steps=1, tasks_path=self.tasks)


def _task(folder: Path) -> Path:
    """A task in the harness's form."""
    folder.mkdir()
    questions = [{"question": row["question"], "choices": [row["answer"], "the mill"], "label": 0} for row in rows(6)]
    data = write_rows(folder / "streets.jsonl", questions)
    task = {
        "task": "streets", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "streets.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(scope="module")
def made(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("learned")
    run = record_tiny(base_model, folder, epochs=4, num_forget=4)
    unlearn_tiny(run, folder / "out", "GGN", oracle=True)
    (folder / "rows").mkdir()
    for name, content in {"forget": rows(20)[-4:], "retain": rows(20)[:4]}.items():
        others = {"paraphrased_answer": "ben lives", "perturbed_answer": ["the mill", "a river"]}
        asked = [row | others | {"paraphrased_question": f"in the mill {row['question']}"} for row in content]
        write_rows(folder / "rows" / f"{name}.jsonl", asked)
    options = AuditOptions(
        evaluate=str(folder / "rows"), deploy=(Rounding.INT4,), stress=True, relearn_lr=0.003, tasks=("streets",),
        tasks_path=_task(folder / "tasks"), tasks_limit=5, oracle=True,
    )  # fmt: skip
    log, document = run.open(), read_audit(folder / "out")
    with restored_numerics(log.manifest.numerics):
        wanted = find_wanted(document, log, options, Silent())
        measured = measure(document, log, folder / "out", options, wanted, Silent())
    assert measured.evaluation is not None
    write_evaluation(folder / "out", measured.evaluation, measured.scores)
    return Made(run, folder / "out", folder / "tasks", measured)


def _is_found(measured: Measured, document: dict[str, Any]) -> bool:
    """Whether the values of a document aren't those that were measured, or are no document at all."""
    held = held_against(
        replace(measured, scores={}), as_unlearned(document), document.get("evaluation"), Path(), _exact
    )
    return any(agreement.problem for agreement in held.values()) or bool(schema_problems(document))


def _exact(_: dict[str, Any]) -> float:
    return 0.0


def _tampered(document: Any, seed: int) -> Iterator[tuple[str, Any]]:
    """Each value changed, each value and each group of values left out, and something added to each group.

    Yields:
        What was done, and the document.
    """
    draw = random.Random(seed)
    groups = {path[:length] for path in places(document) for length in range(len(path))}
    for path in places(document):
        yield f"changed {path}", with_value(document, path, changed(value_at(document, path), draw))
    for path in {*groups, *places(document)} - {()}:
        holder = value_at(document, path[:-1])
        kept = [key for key in (holder if isinstance(holder, dict) else range(len(holder))) if key != path[-1]]
        less = {key: holder[key] for key in kept} if isinstance(holder, dict) else [holder[key] for key in kept]
        yield f"without {path}", with_value(document, path[:-1], less)
    for path in groups:
        holder = value_at(document, path)
        more = holder | {"more": 0.5} if isinstance(holder, dict) else [*holder, 0.5]
        yield f"more in {path}", with_value(document, path, more)


def test_every_change_of_the_evaluation_is_found(made: Made) -> None:
    document = read_audit(made.folder)
    assert {"deployment", "stress", "tasks", "asked", "environment"} <= document["evaluation"].keys()
    assert not _is_found(made.measured, document)
    stated = {name: document["evaluation"][name] for name in ("asked", "environment")}
    measured = {name: value for name, value in document["evaluation"].items() if name not in stated}
    bents = [(what, document | {"evaluation": {**stated, **bent}}) for what, bent in _tampered(measured, seed=0)]
    assert [what for what, bent in bents if not _is_found(made.measured, bent)] == []
    assert len(bents) > 500


def test_every_change_of_the_oracle_is_found(made: Made) -> None:
    document, measured = as_unlearned(read_audit(made.folder)), replace(made.measured, evaluation=None)
    bents = [(what, document | {"oracle": bent}) for what, bent in _tampered(document["oracle"], seed=2)]
    assert [what for what, bent in bents if not _is_found(measured, bent)] == []
    assert len(bents) > 30
    assert not _is_found(measured, document)


def test_every_change_of_what_was_asked_is_found_but_for_places(made: Made) -> None:
    evaluation = read_audit(made.folder)["evaluation"]
    assert asked_problem(evaluation) is None
    unfound = set()
    for path in places(evaluation["asked"], ("asked",)):
        bent = with_value(evaluation, path, changed(value_at(evaluation, path), random.Random(1)))
        if asked_problem(bent) is None:
            unfound.add(path)
    assert unfound == PLACES


def test_every_change_of_the_files_of_scores_is_found(made: Made, tmp_path: Path) -> None:
    def problem(place: str, content: Any, text: str) -> str | None:
        (tmp_path / "file").write_text(text)
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "file").replace(tmp_path / place)
        agreement = Agreement(0.0)
        compare_file(agreement, tmp_path, place, content)
        return agreement.problem

    files, unfound = evals_files(made.measured.scores), []
    assert files.keys() == {path.relative_to(made.folder).as_posix() for path in made.folder.glob("evals/**/*.json")}
    assert len(files) == 6
    for number, (place, content) in enumerate(files.items()):
        text = (made.folder / place).read_text()
        assert problem(place, content, text) is None
        bents = [(what, json.dumps(bent)) for what, bent in _tampered(json.loads(text), seed=number)]
        twice = text.replace("{", f'{{"{next(iter(content))}": 0.5,', 1)
        broken = [("empty", ""), ("cut", text[:-5]), ("twice", twice), ("deep", "[" * 100_000)]
        unfound += [(place, what) for what, bent in bents + broken if problem(place, content, bent) is None]
        (tmp_path / place).unlink()
        missing = Agreement(0.0)
        compare_file(missing, tmp_path, place, content)
        assert missing.problem == f"{place}: it is missing"
    assert unfound == []


def test_verifying_writes_nothing_and_finds_the_same_bits(made: Made) -> None:
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    report = verify_audit(made.folder, made.run.log, made.options)
    assert failed_checks(report) == {}
    assert {"evaluation", "evals", "oracle", "sweep"} <= report.checks.keys()
    assert report.unchecked.keys() == {"document"}
    assert report.remeasured is not None
    assert (report.remeasured["largest_difference"], report.remeasured["tolerance"]) == (0.0, 0.0)
    assert report.remeasured["values"] > 500
    assert {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before


def test_numbers_pass_within_a_tolerance_and_nothing_else_does() -> None:
    def problem(stated: Any, found: Any, tolerance: float = 1e-3) -> str | None:
        agreement = Agreement(tolerance)
        agreement.compare("it", stated, found)
        return agreement.problem

    assert problem({"a": [0.5, 1e-7]}, {"a": [0.5004, 0.0]}) is None
    assert problem(0.5, 0.51) == (
        "it: stated is 0.5, measured again it is 0.51, 2.0e-02 apart: --evaluation-tolerance lets more pass"
    )
    assert problem(0.5, 0.51, 0.02) is None
    pairs: list[tuple[Any, Any]] = [
        (1000, 1001), (1.0, 1001), (True, 1), (1, True), (None, 0.0), ("yes", "no"), (float("nan"), 0.5),
        (float("inf"), 0.5), (10**400, 0.5), ("0.4.12", "0.4.13"), ("a1000000", "a1000001"), ([], {}), ({}, []),
        ([1], []), ("void: of 0.1000", "void: of 0.2000"), ("void: of 0.1", "void: for 0.1"), (None, "void: of 0.1"),
    ]  # fmt: skip
    for stated, found in pairs:
        assert problem(stated, found) is not None, (stated, found)
    assert problem("void: probability 0.5000, of gold 0.1", "void: probability 0.5001, of gold 0.1") is None
