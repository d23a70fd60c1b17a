"""A third party's verification: honest runs pass, and whatever is changed afterwards is found."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tampering import changed, places, value_at, with_value, write_whole
from typer.testing import CliRunner, Result

from lmcleaner.audit.check import AuditReport
from lmcleaner.audit.options import VerifyOptions
from lmcleaner.audit.rerun import Stretch, draw
from lmcleaner.audit.signature import signature_problem
from lmcleaner.audit.verify import verify_audit
from lmcleaner.cli.main import app
from lmcleaner.formats.audit_document import encode_audit, read_audit
from lmcleaner.formats.errors import LmcleanerError
from lmcleaner.unlearning.windows import Window
from tiny_runs import TinyRun, record_tiny, unlearn_tiny, write_base_model

Document = dict[str, Any]
EVERYTHING = VerifyOptions(steps=None)
NUM_TAMPERINGS = 300


@dataclass(frozen=True)
class Made:
    """An output folder and the log that it came from."""

    folder: Path
    log: Path


@pytest.fixture(scope="module")
def run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A log of its own, whose ledger no other test writes."""
    return record_tiny(base_model, tmp_path_factory.mktemp("run"), epochs=4, checkpoint_every=5)


@pytest.fixture(scope="module")
def made(run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """With two windows that end before the run does, and states."""
    folder = tmp_path_factory.mktemp("made") / "out"
    unlearn_tiny(run, folder, "GGN", forget="steps:2,12", K=2, keep_states=2, ledger=True)
    return Made(folder, run.log)


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    return Made(Path(shutil.copytree(made.folder, tmp_path / "out")), Path(shutil.copytree(made.log, tmp_path / "log")))


def failed(report: AuditReport) -> dict[str, str]:
    return {name: problem for name, problem in report.checks.items() if problem is not None}


def verified(made: Made, options: VerifyOptions = EVERYTHING) -> AuditReport:
    return verify_audit(made.folder, made.log, options)


@pytest.mark.parametrize("mode", ["secant", "exact", "diag", "fisher"])
@pytest.mark.parametrize("options", [{}, {"keep_states": 3}, {"K": 3, "keep_states": 2}, {"K": 3}], ids=str)
def test_an_honest_run_passes_with_the_same_bits(
    mode: str, options: dict[str, Any], run: TinyRun, tmp_path: Path
) -> None:
    unlearn_tiny(run, tmp_path / "out", mode, **{"K": None, "ledger": False, **options})
    report = verified(Made(tmp_path / "out", run.log))
    assert failed(report) == {}
    assert report.sweep is not None
    assert report.sweep["relative_error"] == 0.0
    assert report.sweep["steps"] == report.sweep["of_steps"] > 0
    assert ("result" in report.checks) == ("K" not in options or "keep_states" in options)


def test_dropout_is_drawn_again_as_it_was(tmp_path: Path) -> None:
    run = record_tiny(write_base_model(tmp_path / "base", dropout=0.1), tmp_path)
    unlearn_tiny(run, tmp_path / "out", "secant", keep_states=2)
    report = verified(Made(tmp_path / "out", run.log))
    assert failed(report) == {}
    assert report.sweep is not None
    assert report.sweep["relative_error"] == 0.0


def test_a_sample_is_a_part_and_its_seed_draws_it_again(made: Made) -> None:
    one, other = (verified(made, VerifyOptions(steps=1, seed=7)).sweep for _ in range(2))
    assert one is not None
    assert one == other
    assert one["stretches"] == 1
    assert 0 < one["steps"] < one["of_steps"]
    window = Window(start=0, first=0, last=0, end=40)
    found = [Stretch(window, 0, 4 * place, 4 * place + 4) for place in range(10)]
    draws = {tuple(draw(found, 8, seed)) for seed in range(50)}
    assert all(sum(stretch.num_steps for stretch in drawn) == 8 for drawn in draws)
    assert {stretch for drawn in draws for stretch in drawn} == {*found}


def test_the_documents_of_requests_and_windows_name_what_was_kept(made: Made) -> None:
    document = read_audit(made.folder)
    states = sorted(int(path.stem) for path in (made.folder / "states").iterdir())
    assert states == sorted(step for window in document["windows"] for step in window["states"])
    assert len(states) == 2 * len(document["windows"]) > 2
    assert document["files"].keys() >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert not list(made.folder.parent.glob(".*"))


def tamper_field(made: Made, draw: random.Random) -> str:
    document = read_audit(made.folder)
    path = draw.choice(places(document))
    bent = with_value(document, path, changed(value_at(document, path), draw))
    (made.folder / "audit.json").write_text(json.dumps(bent, indent=2) + "\n")
    return "/".join(map(str, path))


def tamper_file(made: Made, draw: random.Random) -> str:
    """A bit of any file of the folder: weights, states, tokenizer, documents."""
    path = draw.choice(sorted(path for path in made.folder.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"{path.relative_to(made.folder)} at {place}"


def remove_file(made: Made, draw: random.Random) -> str:
    path = draw.choice(sorted(path for path in made.folder.rglob("*") if path.is_file()))
    path.unlink()
    return f"no {path.relative_to(made.folder)}"


def drop_window(made: Made, draw: random.Random) -> str:
    document = read_audit(made.folder)
    del document["windows"][draw.randrange(len(document["windows"]))]
    (made.folder / "audit.json").write_bytes(encode_audit(document))
    return "a window less"


def tamper_log(made: Made, draw: random.Random) -> str:
    path = draw.choice(sorted(path for path in made.log.rglob("*") if path.is_file() and path.name != "lock.json"))
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"log: {path.relative_to(made.log)} at {place}"


def say_another_mode(folder: Path, mode: str) -> None:
    """As somebody would who took cheaper steps than the document says, and made all digests fit."""
    document = read_audit(folder)
    document["config"]["hessian_mode"] = mode
    write_whole(folder, document)


@pytest.mark.parametrize("options", [{}, {"keep_states": 3}, {"K": 3, "keep_states": 2}, {"K": 3}], ids=str)
def test_steps_that_were_not_taken_as_the_document_says_are_found(
    options: dict[str, Any], run: TinyRun, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    unlearn_tiny(run, folder, "GGN", **{"K": None, "ledger": False, **options})
    say_another_mode(folder, "exact")
    found = failed(verified(Made(folder, run.log)))
    assert found.keys() == {"sweep"}
    assert "lead somewhere else when they are taken again" in found["sweep"]


def _hide_reasons(document: Document) -> None:
    document["result"] |= {"verdict": "good", "reasons": []}


def _other_reason(document: Document) -> None:
    document["result"]["reasons"][0] += "!"


def _other_estimate(document: Document) -> None:
    document["result"]["estimated_error"] = 0.01


def _other_counts(document: Document) -> None:
    document["requests"][0]["coverage"]["steps"] += 1


def _other_start(document: Document) -> None:
    document["windows"][0]["last_occurrence"] -= 1


def _no_numbers(document: Document) -> None:
    document["windows"][0]["left_out"] = "little"


JUDGED: dict[str, tuple[Callable[[Document], None], str]] = {
    "a poor result called good": (_hide_reasons, "by its own measures the result is poor: window 2 to"),
    "another reason": (_other_reason, "reasons: the document says"),
    "another estimate": (_other_estimate, "estimated_error: the document says 0.01, found None"),
    "a measure that is none": (_no_numbers, "nothing follows from what is stated as measured: "),
    "other counts of a request": (_other_counts, "samples and steps of a request: "),
    "another end of the occurrences": (_other_start, "last_occurrence: the document says"),
}


@pytest.mark.parametrize("case", JUDGED)
def test_what_follows_from_the_document_itself_is_checked_where_nothing_vouches_for_it(
    case: str, run: TinyRun, unvouched: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(unvouched, tmp_path / "out"))
    assert read_audit(folder)["result"]["verdict"] == "poor"
    bend, problem = JUDGED[case]
    document = read_audit(folder)
    bend(document)
    write_whole(folder, document)
    report = verified(Made(folder, run.log), VerifyOptions(steps=1))
    assert any(problem in found for found in failed(report).values())
    assert "document" in report.unchecked


@pytest.fixture(scope="module")
def unvouched(run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A poor result that is in no ledger."""
    folder = tmp_path_factory.mktemp("unvouched") / "out"
    unlearn_tiny(run, folder, "GGN", forget="steps:2,12", K=2, ledger=False)
    assert failed(verified(Made(folder, run.log), VerifyOptions(steps=1))) == {}
    return folder


def test_a_document_that_nothing_vouches_for_is_told(made: Made, run: TinyRun, tmp_path: Path) -> None:
    unlearn_tiny(run, tmp_path / "out", "secant", ledger=False)
    assert "document" in verified(Made(tmp_path / "out", run.log), VerifyOptions(steps=1)).unchecked
    assert verified(made, VerifyOptions(steps=1)).checks["document"] is None


def test_another_document_in_the_place_of_one_that_was_entered_is_found(copied: Made) -> None:
    document = read_audit(copied.folder)
    document["config"]["entered"] = False
    document["windows"][0]["v0_norm"] /= 2
    (copied.folder / "audit.json").write_bytes(encode_audit(document))
    assert "names another document" in failed(verified(copied, VerifyOptions(steps=1)))["document"]


def test_a_redacted_log_is_verified_as_far_as_it_still_can_be(base_model: Path, tmp_path: Path) -> None:
    run = record_tiny(base_model, tmp_path)
    unlearn_tiny(run, tmp_path / "out", redact=True)
    report = verified(Made(tmp_path / "out", run.log))
    assert failed(report) == {}
    assert report.checks.keys() >= {"files", "document", "whole log", "redaction"}
    assert "no longer holds" in report.unchecked["sweep"]


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_says_what_was_taken_again_and_its_exit_code_what_it_is_worth(copied: Made) -> None:
    good = cli("audit", "verify", copied.folder, "--log", copied.log, "--steps", "all", "--seed", 3)
    assert good.exit_code == 1  # nothing is wrong with the document, which says that the result is poor
    assert "verified" in good.stdout, good.output
    num_steps = sum(w["tau"] - w["start"] for w in read_audit(copied.folder)["windows"])
    assert f"{num_steps} of {num_steps} steps taken again (--seed 3): the same bits" in good.stdout
    document = json.loads(cli("audit", "verify", copied.folder, "--log", copied.log, "--json").stdout)
    assert document["passed"]
    assert document["sweep"]["steps"] <= document["sweep"]["of_steps"] == num_steps
    (copied.folder / "config.json").write_text("{}")
    bad = cli("audit", "verify", copied.folder, "--log", copied.log, "--seed", 3)
    assert bad.exit_code == 1
    assert "files          FAILED: config.json: it isn't the file that the run wrote" in bad.stdout
    assert cli("audit", "verify", copied.folder, "--log", copied.log, "--steps", "some").exit_code == 2
    assert cli("audit", copied.folder, "--log", copied.log).exit_code in {0, 1}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pem").write_bytes(private)
        (folder / f"{name}.pub").write_bytes(public)
    return folder


def test_a_signature_vouches_for_a_document(keys: Path, run: TinyRun, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    unlearn_tiny(run, folder, "secant", ledger=False)
    without_key = ("audit", "verify", folder, "--log", run.log, "--steps", 1)
    verify = (*without_key, "--public-key")
    unsigned = cli(*verify, keys / "own.pub")
    assert "FAILED: the document isn't signed" in unsigned.stdout
    assert cli("audit", "sign", folder, "--key", keys / "own.pem").exit_code == 0
    good = cli(*verify, keys / "own.pub")
    assert good.exit_code == 0, good.output
    assert "signature      ok" in good.stdout
    assert "vouches" not in good.stdout
    assert cli(*verify, keys / "other.pub").exit_code == 1
    assert "signature      not checked: audit.json.sig lies there: --public-key FILE" in cli(*without_key).stdout
    assert cli("audit", "sign", folder, "--key", keys / "none.pem").exit_code == 10
    with (folder / "audit.json").open("a") as file:
        file.write(" ")
    assert "isn't this key's signature" in cli(*verify, keys / "own.pub").stdout


def test_a_signature_is_replaced_on_demand_alone(keys: Path, copied: Made) -> None:
    sign = ("audit", "sign", copied.folder, "--key")
    assert cli(*sign, keys / "own.pem").exit_code == 0
    same, other = cli(*sign, keys / "own.pem"), cli(*sign, keys / "other.pem")
    assert (same.exit_code, other.exit_code) == (11, 11)
    assert "the document is signed already, with this key: " in same.stderr
    assert "the document is signed already, with another key, or when it said something else: " in other.stderr
    assert "hint: --overwrite replaces the signature" in other.stderr
    assert signature_problem(copied.folder, keys / "own.pub") is None
    assert cli(*sign, keys / "other.pem", "--overwrite").exit_code == 0
    assert signature_problem(copied.folder, keys / "other.pub") is None


def test_an_evaluation_never_breaks_a_signature(keys: Path, copied: Made) -> None:
    cli("audit", "sign", copied.folder, "--key", keys / "own.pem")
    before = (copied.folder / "audit.json").read_bytes()
    refused = cli("audit", copied.folder, "--log", copied.log, "--evaluate", "log")
    assert refused.exit_code == 11
    assert "hint: evaluate first and sign last" in refused.stderr
    assert (copied.folder / "audit.json").read_bytes() == before


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_checks_the_same_signature(keys: Path, copied: Made) -> None:
    cli("audit", "sign", copied.folder, "--key", keys / "own.pem")
    key = str(keys / "own.pub")
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin", "-in", "audit.json"]
    checked = subprocess.run([*command, "-sigfile", "audit.json.sig"], cwd=copied.folder, check=False)
    assert checked.returncode == 0


KINDS = [tamper_field] * 6 + [tamper_file] * 4 + [remove_file, drop_window] + [tamper_log] * 3


def is_found(made: Made) -> bool:
    """A failed check, or an error that says what can't be read."""
    try:
        return not verified(made, VerifyOptions(steps=1, seed=0)).passed
    except LmcleanerError:
        return True


@pytest.mark.slow
def test_every_tampering_is_found(made: Made, tmp_path: Path) -> None:
    unfound = []
    for number in range(NUM_TAMPERINGS):
        folder = tmp_path / str(number)
        copied = Made(Path(shutil.copytree(made.folder, folder / "out")), made.log)
        draw = random.Random(number)
        kind: Callable[[Made, random.Random], str] = draw.choice(KINDS)
        if kind is tamper_log:
            copied = Made(copied.folder, Path(shutil.copytree(made.log, folder / "log")))
        what = kind(copied, draw)
        if not is_found(copied):
            unfound.append((number, kind.__name__, what))
        shutil.rmtree(folder)
    assert unfound == []
