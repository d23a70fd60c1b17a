"""The tour: every command as a user would type it, then what each model knows."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from demo.base_model import make_base_model
from demo.comparison import answers_table, comparison_table, known, relative_difference, same_bits, surest
from demo.people import DemoData, make_data, write_data

_SEED = 1
_TRAINING = ("--epochs", "15", "--batch-size", "8", "--lr", "1e-3", "--warmup-ratio", "0.1")
_LEAST_KNOWN = 0.4  # mean answer probability on the forgotten rows below which there is nothing to unlearn
_DONE = frozenset({0})
_DONE_OR_POOR = frozenset({0, 1})  # 1: a result that was written and says of itself that it is poor
_RETRAIN = Path(__file__).with_name("retrain.py")


class CommandFailedError(Exception):
    """A command of the tour ended as it should not."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Keeps the exit code for the tour's own."""
        super().__init__(message)
        self.exit_code = exit_code


class Tour:
    """Shows `lmcleaner` from the first command to the last.

    Attributes:
        folder: an empty folder for everything that the tour makes.
        data: the rows.
        seconds: wall time of each part so far, by its name.
    """

    def __init__(self, folder: Path) -> None:
        """Invents the people; nothing is written yet."""
        self.folder = folder
        self.data: DemoData = make_data(_SEED)
        self.seconds: dict[str, float] = {}
        self._console = Console(highlight=False)
        self._log = str(folder / "log")

    def run(self) -> None:
        """Runs all parts.

        Raises:
            CommandFailedError: a command failed, or the model didn't learn the rows that it shall forget.
        """
        started = time.perf_counter()
        self._prepare()
        self._record()
        self._inspect()
        self._unlearn()
        self._retrain()
        self._compare()
        total = time.perf_counter() - started
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.seconds.items())
        self._say(f"\n{total:.0f} s in total: {parts}")
        self._say(f"The log to try further commands on: {self._log} (export LMCLEANER_LOG={self._log})")

    def _prepare(self) -> None:
        num_forgotten, num_rows = len(self.data.forget), len(self.data.train)
        self._title("1. Invented people, and a small language model that has never heard of them")
        with self._timed("base"):
            write_data(self._at("data"), self.data)
            parameters = make_base_model(self._at("base"), self.data.pretrain, _SEED)
        self._say(f"{self._at('data')}: {num_rows} rows to train on; {num_forgotten} of them will have to be forgotten")
        self._say(f"{self._at('base')}: a Llama of {parameters:,} parameters, pretrained on other people")

    def _record(self) -> None:
        self._title("2. Fine-tune it on them, and record every step")
        self._lmcleaner("record", self._log, *self._model_and_data(), "--output", self._at("trained"), *_TRAINING)
        probability = known(self._at("trained"), self.data.forget)
        self._say(f"The trained model gives the right answers about them a probability of {probability:.3f}.")
        if probability < _LEAST_KNOWN:
            raise CommandFailedError(
                f"the model didn't learn what it shall forget: expected an answer probability of at least "
                f"{_LEAST_KNOWN}, found {probability:.3f}",
                exit_code=1,
            )

    def _inspect(self) -> None:
        names = self.data.forgotten_names
        self._title(f"3. {' and '.join(names)} ask to be forgotten: what does the log hold, what would it cost?")
        for arguments in ((), ("--find", names[0]), ("--forget", "forget", "--plan")):
            self._lmcleaner("inspect", self._log, *arguments)

    def _unlearn(self) -> None:
        self._title("4. Unlearn: by the GGN approximation, then by the exact secant")
        for mode, accepted in (("GGN", _DONE_OR_POOR), ("secant", _DONE)):
            output = self._at(f"unlearned-{mode.lower()}")
            request: list[str | Path] = ["--forget", "forget", "--output", output, "--K", "all", "--hessian-mode", mode]
            self._lmcleaner("unlearn", self._log, *request, part=f"unlearn {mode}", accepted=accepted)
        self._title("5. Check the result against the log")
        self._lmcleaner("audit", self._at("unlearned-secant"), "--log", self._log, "--oracle")

    def _retrain(self) -> None:
        self._title(
            "6. The reference: a plain Hugging Face Trainer run without the forgotten rows, without lmcleaner's log"
        )
        arguments = [*self._model_and_data(), "--without", self._at("data") / "forget.jsonl"]
        output = self._at("retrained")
        self._command("python", os.path.relpath(_RETRAIN), *arguments, "--output", output, *_TRAINING, part="retrain")
        unlearned, retrained, trained = (self._at(name) for name in ("unlearned-secant", "retrained", "trained"))
        if same_bits(unlearned, retrained):
            self._say("The unlearned model (secant) and the retrained one are the same, bit for bit.")
            return
        difference = relative_difference(unlearned, retrained, trained)
        self._say(
            f"The unlearned model (secant) is NOT the retrained one bit for bit: relative error {difference:.2g}."
        )

    def _compare(self) -> None:
        self._title("7. Who knows what?")
        parts = {
            "base": "base",
            "trained": "record",
            "unlearned-ggn": "unlearn GGN",
            "unlearned-secant": "unlearn secant",
            "retrained": "retrain",
        }
        models = {name: self._at(name) for name in parts}
        seconds = {name: self.seconds[part] for name, part in parts.items()}
        self._console.print(comparison_table(models, seconds, self.data.forget, self.data.retain))
        self._say("\nWhat they answer to the forgotten and the retained question that the trained model is surest of:")
        for rows in (self.data.forget, self.data.retain):
            self._console.print(answers_table(models, surest(self._at("trained"), rows)))

    def _at(self, name: str) -> Path:
        return self.folder / name

    def _model_and_data(self) -> list[str | Path]:
        return ["--model", self._at("base"), "--data", self._at("data") / "train.jsonl"]

    def _lmcleaner(
        self,
        command: str,
        *arguments: str | Path,
        part: str | None = None,
        accepted: Set[int] = _DONE,
    ) -> None:
        self._command("lmcleaner", command, *arguments, part=part or command, accepted=accepted)

    def _command(self, program: str, *arguments: str | Path, part: str, accepted: Set[int] = _DONE) -> None:
        """Shows a command, runs it from the interpreter's own environment, and adds its time to the part's."""
        words = [str(argument) for argument in arguments]
        self._say(f"\n$ {shlex.join([program, *words])}")
        sys.stdout.flush()
        with self._timed(part):
            found = subprocess.run([str(_installed(program)), *words], check=False).returncode
        if found not in accepted:
            exit_code = found if found > 0 else 128 - found  # a signal's number comes negative
            raise CommandFailedError(f"the command ended with exit code {exit_code}: {program} {words[0]}", exit_code)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

    def _title(self, text: str) -> None:
        self._console.print(f"\n{text}", style="bold", markup=False, soft_wrap=True)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _installed(program: str) -> Path:
    """The program beside the running interpreter, whatever the shell's path says."""
    python = Path(sys.executable)
    if program == "python":
        return python
    found = python.with_name(program)
    if not found.is_file():
        raise CommandFailedError(f"no such program: {found}: run `make install` first", exit_code=10)
    return found
