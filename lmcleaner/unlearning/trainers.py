"""`unlearn` as Hugging Face trainers, for harnesses that run every method as one.

They are made as the unlearning trainers of open-unlearning are (Dorna et al., "OpenUnlearning", 2025): with a trained
model, its arguments, a dataset that has the rows to forget as `forget`, and the method's own arguments by name.
"""

import logging
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from lmcleaner.choices import HessianMode, Level
from lmcleaner.formats.audit_document import AUDIT_FILE, Document
from lmcleaner.formats.errors import MismatchError, NotFoundError, UsageError
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.formats.wording import counted
from lmcleaner.recording.describe import trainable_parameters
from lmcleaner.training.models import load_unlearned
from lmcleaner.training.vectors import bits_of, dtype_name
from lmcleaner.unlearning.classic import AUDIT_RECORDS, check_batch_size
from lmcleaner.unlearning.options import DEFAULT_DAMPING, DEFAULT_K, UnlearnOptions
from lmcleaner.unlearning.run import unlearn

_log = logging.getLogger(__name__)


class LMCleanerSampleLevel(Trainer):
    """Removes rows: steps that held one of them are taken without it.

    Attributes:
        document: the audit document, once it has run.
    """

    level: ClassVar[Level] = Level.SAMPLE

    def __init__(
        self,
        model: nn.Module,
        args: Any = None,
        train_dataset: Any = None,
        *,
        training_log_dir: Path | str,
        K: int | str = DEFAULT_K,  # noqa: N803 -- the paper's name
        hessian_mode: str = HessianMode.GGN,
        damping: float = DEFAULT_DAMPING,
        apply_immediately: bool = False,
        audit_dir: Path | str | None = None,
        batch_size_at_training: int | None = None,
        base_model: str | None = None,
        tokenizer: Any = None,
        evaluators: Any = None,
        template_args: Any = None,
        **options: Any,
    ) -> None:
        """Takes what the harness gives; trains nothing and reads nothing yet, unless it shall apply immediately.

        Args:
            model: the trained model; the correction goes into its parameters.
            args: `transformers.TrainingArguments`; only its `output_dir` plays a part.
            train_dataset: a dataset with the rows to forget as `forget`, each with `input_ids` and `labels`.
            training_log_dir: the log of the training.
            K: steps to carry after the last occurrence, "all" or "auto".
            hessian_mode: how the gradient at θ′ is found.
            damping: λ.
            apply_immediately: corrects the model here already; `train` then does nothing.
            audit_dir: where `audit_records.json` goes; by default `audit` in the output folder.
            batch_size_at_training: rows of a microbatch, to be held against the log.
            base_model: where the base model lies now, if it moved.
            tokenizer: another name of `processing_class`.
            evaluators: of the harness; not used.
            template_args: of the harness; not used: rows are found by their tokens.
            options: further arguments of `transformers.Trainer`.

        Raises:
            UsageError: a value is out of its range, there is nothing to forget, or the log is of another batch size.
            LmcleanerError: with `apply_immediately`, whatever `train` raises.
        """
        options.setdefault("processing_class", tokenizer)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **options)
        self.model: Any  # never None: it is given
        self.document: Document | None = None
        self._log_dir, self._batch_size = training_log_dir, batch_size_at_training
        self._audit_dir = Path(audit_dir) if audit_dir is not None else Path(str(self.args.output_dir)) / "audit"
        self._chosen: dict[str, Any] = {
            "K": K, "hessian_mode": hessian_mode, "damping": damping, "model": base_model,
            "level": self.level, "ledger": False,
        }  # fmt: skip
        UnlearnOptions(forget="steps:0", output=None, dry_run=True, **self._chosen)  # checks ranges
        if apply_immediately:
            self.train()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Corrects the model and writes the audit, once.

        Args:
            args: of `transformers.Trainer.train`; not used.
            kwargs: likewise.

        Returns:
            The logged run's number of steps; no loss, since nothing is trained.

        Raises:
            NotFoundError: the run never saw one of the rows.
            MismatchError: the model is not the one that the log trained.
            UsageError: there is nothing to forget, or the log is of another batch size.
            LmcleanerError: see `unlearn`.
        """
        log = TrainingLog(self._log_dir)
        if self.document is None:
            self._check(log)
            self.document = self._corrected(log)
        result = self.document["result"]
        for reason in result["reasons"]:
            _log.warning("the result is poor: %s", reason)
        estimated = result["estimated_error"]
        metrics = {} if estimated is None else {"estimated_error": estimated}
        return TrainOutput(log.num_steps, math.nan, metrics)

    def _check(self, log: TrainingLog) -> None:
        check_batch_size(log, self._batch_size)
        parameters = list(trainable_parameters(self.model).values())
        if dtype_name(parameters[0].dtype) != log.manifest.model.dtype:
            _log.warning("the model is in %s, the log's in %s", parameters[0].dtype, log.manifest.model.dtype)
        elif not np.array_equal(bits_of(parameters), log.parameters(log.num_steps)):
            raise MismatchError(
                f"not the model that the log trained: {log.location}: expected its parameters after step "
                f"{log.num_steps}, found others",
                hint="load the model that the training wrote",
            )

    def _corrected(self, log: TrainingLog) -> Document:
        """Unlearns into a folder of its own, and takes parameters and audit from there."""
        forget = ",".join(digest.hex() for digest in _digests(log, getattr(self.train_dataset, "forget", None)))
        with TemporaryDirectory() as scratch:
            output = Path(scratch) / "model"
            document = unlearn(log, forget, output=output, **self._chosen).document
            assert document is not None
            parameters = trainable_parameters(self.model)
            made = dict(load_unlearned(log.manifest, output, self._chosen["model"]).named_parameters())
            for name, parameter in parameters.items():
                parameter.data.copy_(made[name].data)
            self._audit_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(output / AUDIT_FILE, self._audit_dir / AUDIT_RECORDS)
        return document


class LMCleanerBatchLevel(LMCleanerSampleLevel):
    """Skips the steps that held one of the rows, as a whole."""

    level: ClassVar[Level] = Level.BATCH


def _digests(log: TrainingLog, rows: Iterable[Mapping[str, Any]] | None) -> list[bytes]:
    """The log's samples with the tokens of the rows; by their labels too, where both have the same.

    Raises:
        UsageError: there are no rows.
        NotFoundError: the run never saw one of them.
    """
    samples = [_sample(row) for row in rows] if rows is not None else []
    if not samples:
        raise UsageError(
            "nothing to forget: expected a train_dataset whose `forget` has rows",
            hint="give a dataset of rows to forget and to retain",
        )
    by_tokens: dict[bytes, list[bytes]] = {}
    if any(sample.digest not in log.sample_rows for sample in samples):
        for digest, row in log.sample_rows.items():
            by_tokens.setdefault(log.sample(row).tokens.tobytes(), []).append(digest)
    found = list[bytes]()
    for number, sample in enumerate(samples):
        known = [sample.digest] if sample.digest in log.sample_rows else by_tokens.get(sample.tokens.tobytes(), [])
        if not known:
            raise NotFoundError(
                f"the run never saw this: row {number} of the forget set, {counted(len(sample.tokens), 'token')}: it "
                f"is not among the {counted(len(log.sample_rows), 'sample')} of {log.location}",
                hint="tokenizer, template and truncation must be those of the training",
            )
        found += known
    return found


def _sample(row: Mapping[str, Any]) -> Sample:
    """A row without its padding."""
    tokens, labels = (_whole(row[name]) for name in ("input_ids", "labels"))
    mask = _whole(row["attention_mask"]) if "attention_mask" in row else np.ones_like(tokens)
    places = np.flatnonzero((mask != 0) | (labels != IGNORED_LABEL))
    kept = slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
    return Sample(tokens[kept], labels[kept])


def _whole(values: Any) -> Any:
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values, np.int32).reshape(-1)
