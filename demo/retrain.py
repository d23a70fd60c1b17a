"""The honest reference: trains again without some rows, with nothing but Hugging Face `Trainer`.

The forgotten rows stay in their batches, so that order, schedule and denominators are those of the recorded run, but
their labels are masked just before the model sees them. No code of the log, the replay or the sweep takes part.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lmcleaner.data.encoding import Encoding
from lmcleaner.data.rows import read_rows
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.recording.options import RecordOptions
from lmcleaner.recording.training import make_trainer
from lmcleaner.training.models import load_model, load_tokenizer


def retrain(options: RecordOptions, without: Path) -> None:
    """Trains as `record` would, but the rows of a file contribute nothing.

    Args:
        options: what to train and how, as for `record`.
        without: file of the rows to leave out.
    """
    torch.set_num_threads(1)  # as `record` does for a small model
    torch.set_flush_denormal(True)
    tokenizer = load_tokenizer(options.model)
    encoding = Encoding(template=options.template, max_length=options.max_length)
    samples, forgotten = (
        encoding.samples(read_rows(str(file)).rows, tokenizer, str(file)) for file in (options.data, without)
    )
    model = load_model(options.model, torch.float32)
    with TemporaryDirectory() as scratch:
        trainer = make_trainer(model, tokenizer, samples, options, Path(scratch))
        leave_out(model, forgotten)
        trainer.train()
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


def leave_out(model: torch.nn.Module, forgotten: Sequence[Sample]) -> None:
    """Masks the labels of forgotten rows in every forward pass from now on.

    `Trainer` counts a batch's labels before it calls the model, so the loss is still divided by the count of all rows.

    Args:
        model: a causal language model that is called with `input_ids`, `attention_mask` and `labels`.
        forgotten: the rows.
    """
    names = {tuple(sample.tokens.tolist()) for sample in forgotten}

    def mask(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        tokens, attention = kwargs["input_ids"], kwargs["attention_mask"].bool()
        is_forgotten = [tuple(row[seen].tolist()) in names for row, seen in zip(tokens, attention, strict=True)]
        labels = kwargs["labels"].clone()
        labels[torch.tensor(is_forgotten, device=labels.device)] = IGNORED_LABEL
        return args, kwargs | {"labels": labels}

    model.register_forward_pre_hook(mask, with_kwargs=True)


def _options() -> tuple[RecordOptions, Path]:
    parser = argparse.ArgumentParser(description="Train without some rows, with Hugging Face Trainer alone.")
    for name in ("--model", "--data"):
        parser.add_argument(name, required=True)
    for name in ("--output", "--without"):
        parser.add_argument(name, required=True, type=Path)
    for name in ("--epochs", "--lr", "--warmup-ratio"):
        parser.add_argument(name, required=True, type=float)
    parser.add_argument("--batch-size", required=True, type=int)
    values = vars(parser.parse_args())
    without = values.pop("without")
    return RecordOptions(**values), without


if __name__ == "__main__":
    retrain(*_options())
