"""What can be known to be wrong at once is said before torch is loaded, and a quiet command is quiet."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tiny_runs import TinyRun, unlearn_tiny

# Runs each command, in a process in which no module can import torch.
_WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
from typer.testing import CliRunner
from lmcleaner.cli.main import app
found = {name: CliRunner().invoke(app, arguments) for name, arguments in json.loads(sys.argv[1]).items()}
print(json.dumps({name: [result.exit_code, result.stderr] for name, result in found.items()}))
"""

ERRORS: dict[str, tuple[str, int, str]] = {
    "an output that exists": (
        "record {tmp}/l --model {base} --data {data} --output {made}", 11, "the output exists already"
    ),
    "a log that exists": ("record {log} --model {base} --data {data} --output {tmp}/o", 11, "the log exists already"),
    "data that isn't there": (
        "record {tmp}/l --model {base} --data {tmp}/no.jsonl --output {tmp}/o", 10, "no such data file: "
    ),
    "a folder without data": ("record {tmp}/l --model {base} --data {keys} --output {tmp}/o", 10, "no data file"),
    "a model that isn't there": (
        "record {tmp}/l --model my-bas --data {data} --output {tmp}/o", 10,
        "no such model: my-bas: no such folder, nor is it in the hub's cache",
    ),
    "an output to resume that exists": ("record {log} --resume --output {made}", 11, "the output exists already"),
    "a log that a script's run would overwrite": ("record {log} -- {script}", 11, "the log exists already"),
    "no output": ("record {tmp}/l --model m --data d", 2, "missing: --output"),
    "no script": ("record {tmp}/l --", 2, "no script"),
    "a script that isn't there": ("record {tmp}/l -- nowhere.py", 10, "no such script: nowhere.py"),
    "an option that a script has itself": (
        "record {tmp}/l --lr 1 -- {script}", 2, "--lr is for lmcleaner's own training"
    ),
    "an output that a script has itself": (
        "record {tmp}/l --output out -- {script}", 2, "--output is for lmcleaner's own training"
    ),
    "no log for a script to resume": ("record {tmp}/l --resume -- {script}", 10, "no training log"),
    "no log to unlearn from": ("unlearn {tmp}/l --forget forget --output {tmp}/o", 10, "no training log"),
    "an output of unlearn that exists": ("unlearn {log} --forget forget --output {made}", 11, "exists already"),
    "a base model that isn't there": (
        "unlearn {log} --forget forget --output {tmp}/o --model {tmp}/no", 10, "no such model"
    ),
    "no folder to audit": ("audit {tmp}/no --log {log}", 10, "no audit document"),
    "a misspelt specification": ("audit {made} --log {log} --evaluate lgo", 10, "nothing to evaluate on: lgo"),
    "no gold model": ("audit {made} --log {log} --evaluate log --gold {tmp}/no", 10, "no such model"),
    "a page that exists": ("audit {made} --log {log} --html {data}", 11, "the output exists already"),
    "no key": ("audit verify {made} --log {log} --public-key {tmp}/no", 10, "no key: "),
    "a private key to verify with": (
        "audit verify {made} --log {log} --public-key {keys}/own.pem", 2,
        "not a key to verify with: {keys}/own.pem: expected a public ed25519 key in PEM, found a PRIVATE KEY\n",
    ),
    "a public key to sign with": (
        "audit sign {made} --key {keys}/own.pub", 2,
        "not a key to sign with: {keys}/own.pub: expected a private ed25519 key in PEM, found a PUBLIC KEY\n",
    ),
    "a key of another kind": ("audit sign {made} --key {keys}/rsa.pem", 2, "ed25519 key in PEM, found RSAPrivateKey\n"),
    "no key at all": ("audit verify {made} --log {log} --public-key {data}", 2, "in PEM, found something else\n"),
    "no step to verify": ("audit verify {made} --log {log} --steps 0", 2, "--steps: expected 1 or more, or 'all'"),
    "a rate without what it is for": (
        "audit {made} --log {log} --evaluate log --relearn-lr 0.1", 2, "--relearn-lr is the learning rate of --stress"
    ),
    "a mode that there isn't": (
        "unlearn {log} --forget forget --output {tmp}/o --hessian-mode hessian", 2, "'fisher', 'auto'], found 'hessian'"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def said(adamw_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, str]]:
    """Exit code and stderr of each command, and what its arguments stand for."""
    folder, tmp = tmp_path_factory.mktemp("early"), tmp_path_factory.mktemp("outputs")
    unlearn_tiny(adamw_run, folder / "made")
    (folder / "train.py").write_text("raise AssertionError('it was run')")
    places = {
        "tmp": str(tmp), "base": str(adamw_run.base), "data": str(adamw_run.data), "log": str(adamw_run.log),
        "made": str(folder / "made"), "keys": str(_write_keys(folder / "keys")),
        "script": str(folder / "train.py"),
    }  # fmt: skip
    commands = {name: arguments.format(**places).split() for name, (arguments, _, _) in ERRORS.items()}
    program = [sys.executable, "-c", _WITHOUT_TORCH, json.dumps(commands)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, env={**os.environ})
    assert list(tmp.iterdir()) == []
    return json.loads(done.stdout), places


def _write_keys(folder: Path) -> Path:
    folder.mkdir()
    keys: dict[str, Any] = {"own": Ed25519PrivateKey.generate(), "rsa": generate_private_key(65537, 2048)}
    for name, key in keys.items():
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.pem").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(public)
    return folder


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_wrong_is_said_before_torch_is_loaded(case: str, said: tuple[dict[str, Any], dict[str, str]]) -> None:
    found, places = said
    code, stderr = found[case]
    _, expected, message = ERRORS[case]
    assert (code, message.format(**places) in stderr) == (expected, True), stderr


def test_a_quiet_recording_says_nothing_on_stderr(base_model: Path, adamw_run: TinyRun, tmp_path: Path) -> None:
    """Not even what libraries say while they are imported."""
    command = [sys.executable, "-m", "lmcleaner.cli", "record", str(tmp_path / "log"), "--model", str(base_model)]
    options = ["--data", str(adamw_run.data), "--output", str(tmp_path / "o"), "--max-steps", "1", "--quiet"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert "recorded 1 step" in done.stdout
    assert done.stderr == ""
