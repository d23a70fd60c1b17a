"""Several requests in one run: one sweep serves all, and everybody has a document."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from named_requests import find_forget_set

from independent_trainer import train_without
from lmcleaner.audit.check import audit_model
from lmcleaner.audit.options import AuditOptions
from lmcleaner.choices import Level
from lmcleaner.formats.audit_document import schema_problems
from lmcleaner.formats.canonical import sha256_hex
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.ledger import read_ledger
from serving import failed_checks, lmcleaner, served
from tiny_runs import (
    SETTINGS,
    TinyRun,
    parameters_in,
    record_tiny,
    rows,
    same_bits,
    write_rows,
)

Document = dict[str, Any]


@pytest.fixture
def run(adamw_run: TinyRun, tmp_path: Path) -> TinyRun:
    """A copy whose ledger may be written."""
    return adamw_run.copied(tmp_path / "copied")


# --- Several in one run.


def test_several_requests_give_the_bits_of_one_that_names_all(run: TinyRun, tmp_path: Path) -> None:
    first, second = run.digests(3, 5), run.digests(8, 11)
    several = served(run, tmp_path / "several", [first, second], ledger=False)
    one = served(run, tmp_path / "one", f"{first},{second}", ledger=False)
    assert same_bits(parameters_in(tmp_path / "several"), parameters_in(tmp_path / "one"))
    assert several["hashes"] == one["hashes"]
    assert several["coverage"] == one["coverage"]
    assert [part["coverage"]["samples"] for part in several["requests"]] == [2, 3]


def test_what_two_requests_share_counts_for_each_and_once_for_both(run: TinyRun, tmp_path: Path) -> None:
    document = served(run, tmp_path / "out", [run.digests(3, 6), run.digests(5, 7)], ledger=False)
    counts = [part["coverage"] for part in document["requests"]]
    assert [(count["samples"], count["occurrences"]) for count in counts] == [(3, 6), (2, 4)]
    assert (document["coverage"]["samples"], document["coverage"]["occurrences"]) == (4, 8)
    assert sum(window["occurrences"] for window in document["windows"]) == 8
    assert failed_checks(audit_model(tmp_path / "out", run.log)) == {}


@pytest.mark.parametrize("setting", ["adamw", "sgd with momentum"])
def test_both_levels_at_once_give_the_bits_of_a_run_that_masks_and_skips(
    setting: str, base_model: Path, tmp_path: Path
) -> None:
    run = record_tiny(base_model, tmp_path, **SETTINGS[setting])
    document = served(run, tmp_path / "out", ["forget", "steps:2,6-7"], oracle=True)
    forget = tmp_path / "forget.jsonl"
    retrained = train_without(run.options, tmp_path / "scratch", forget=forget, skip=frozenset({2, 6, 7}))
    assert same_bits(parameters_in(tmp_path / "out"), retrained)
    assert document["oracle"]["relative_error"] == 0.0
    assert document["request"]["level"] == "mixed"
    assert document["request"]["skipped"] == [2, 6, 7]
    assert document["request"]["masked"] == document["requests"][0]["samples"]
    assert failed_checks(audit_model(tmp_path / "out", run.log, AuditOptions(oracle=True))) == {}


def test_a_level_that_is_given_is_that_of_all(run: TinyRun, tmp_path: Path) -> None:
    document = served(run, tmp_path / "out", ["forget", "steps:2"], level=Level.SAMPLE, ledger=False)
    assert [part["level"] for part in document["requests"]] == ["sample", "sample"]
    assert document["request"]["level"] == "sample"


def test_every_row_that_leaves_is_counted_once_whatever_its_level(run: TinyRun) -> None:
    log = run.open()
    in_skipped, elsewhere = log.step(2).samples[0].digest, log.step(3).samples[0].digest
    named = ["steps:2", in_skipped.hex(), elsewhere.hex()]
    found = find_forget_set(log, named, None, lambda: None)
    assert found.level is None
    assert found.num_occurrences == 4 + 1 + 2, "the step, the other use of its sample, the other sample"
    assert sum(found.count_in(number, log.step(number)) for number in range(log.num_steps)) == found.num_occurrences


def test_the_same_request_twice_is_one(run: TinyRun, tmp_path: Path) -> None:
    document = served(run, tmp_path / "out", [run.digests(3, 5), run.digests(3, 5)], ledger=False)
    assert len(document["requests"]) == 1


@pytest.mark.parametrize("forget", [["steps:0-4", "steps:5-9"], ["steps:0-8", "steps:9"], []])
def test_requests_for_everything_or_nothing_are_refused(forget: list[str], run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"names everything|--forget is missing"):
        served(run, tmp_path / "out", forget)
    assert read_ledger(run.open()).entries == ()


# --- A document for each.


def _all_digests(document: Document) -> set[str]:
    return {digest for part in document["requests"] for digest in part["samples"]}


def test_each_request_has_a_document_that_names_nothing_of_the_others(run: TinyRun, tmp_path: Path) -> None:
    served(run, tmp_path / "before", run.digests(0, 2))
    document = served(run, tmp_path / "out", [run.digests(3, 5), "steps:6"])
    everybody = _all_digests(document) | {d for part in document["request"]["earlier"] for d in part["samples"]}
    for part in document["requests"]:
        text = (tmp_path / "out" / part["document"]).read_text()
        own = json.loads(text)
        assert schema_problems(own) == []
        assert own["request"] == {name: part[name] for name in ("level", "samples", "steps")}
        assert own["coverage"] == part["coverage"]
        assert own["hashes"]["forget_set"] == part["forget_set"]
        assert own["hashes"]["union"] == document["hashes"]["forget_set"]
        assert own["hashes"]["audit"] == sha256_hex((tmp_path / "out" / "audit.json").read_bytes())
        assert part["document"] == f"requests/{part['forget_set'][:16]}.json"
        assert {digest for digest in everybody if digest in text} == set(part["samples"])
        assert "earlier" not in text
        assert not [other for other in document["requests"] if other is not part and other["forget_set"] in text]


def _more_samples(folder: Path, document: Document) -> None:
    document["requests"][0]["samples"].append(document["requests"][1]["samples"][0])


def _other_part(folder: Path, document: Document) -> None:
    document["requests"][0]["coverage"]["occurrences"] += 1


def _other_step(folder: Path, document: Document) -> None:
    document["requests"][1]["steps"].append(9)


def _no_earlier(folder: Path, document: Document) -> None:
    del document["request"]["earlier"]


def _bent_own(folder: Path, document: Document) -> None:
    place = folder / document["requests"][0]["document"]
    place.write_text(place.read_text().replace('"good"', '"poor"'))


def _lost_own(folder: Path, document: Document) -> None:
    (folder / document["requests"][0]["document"]).unlink()


def _one_more(folder: Path, document: Document) -> None:
    (folder / "requests" / "note.txt").write_text("")


BENT = {
    "a sample more in one request": (_more_samples, "samples"),
    "another count in one request": (_other_part, "coverage"),
    "a step more in one request": (_other_step, "samples"),
    "earlier requests left out": (_no_earlier, "samples"),
    "another verdict in a request's own document": (_bent_own, "requests"),
    "a request's own document lost": (_lost_own, "requests"),
    "a document of nobody": (_one_more, "requests"),
}


@pytest.mark.parametrize("case", BENT)
def test_a_bent_document_of_several_requests_fails(case: str, run: TinyRun, tmp_path: Path) -> None:
    served(run, tmp_path / "before", run.digests(0, 2))
    document = served(run, tmp_path / "out", [run.digests(3, 5), "steps:6"])
    assert failed_checks(audit_model(tmp_path / "out", run.log)) == {}
    bend, check = BENT[case]
    bend(tmp_path / "out", document)
    if check != "requests":
        (tmp_path / "out" / "audit.json").write_text(json.dumps(document))
    failed = failed_checks(audit_model(tmp_path / "out", run.log))
    assert check in failed
    assert ("ledger" in failed) == (check != "requests")


# --- What is said.


def _lines(folder: Path, names: Iterable[str]) -> list[object]:
    return [argument for name in names for argument in ("--forget", folder / f"{name}.jsonl")]


def test_several_requests_as_a_user_would_type_them(run: TinyRun, tmp_path: Path) -> None:
    for number, name in enumerate(("ada", "ben")):
        write_rows(tmp_path / f"{name}.jsonl", rows(20)[number : number + 1])
    options = ("--output", tmp_path / "out", "--hessian-mode", "secant", "--K", "all")
    made = lmcleaner("unlearn", run.log, *_lines(tmp_path, ("ada", "ben")), *options)
    assert made.exit_code == 0, made.output
    assert made.stdout.count("its own document: requests/") == 2
    assert "ledger   entered" in made.stdout
    config = tmp_path / "config.yaml"
    config.write_text("forget: [steps:1, steps:2]\n")
    planned = json.loads(lmcleaner("unlearn", run.log, "--config", config, "--dry-run", "--json").stdout)
    assert (planned["requests"], planned["earlier"]) == (2, 2)
    checked = lmcleaner("audit", tmp_path / "out", "--log", run.log)
    assert checked.exit_code == 0, checked.output
    assert "ledger         ok" in checked.stdout
