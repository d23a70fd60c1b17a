"""What each model of the demonstration knows about the forgotten and the retained people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from demo.base_model import MAX_LENGTH
from demo.people import Row
from lmcleaner.data.encoding import Encoding
from lmcleaner.evaluation.answers import answer_probabilities
from lmcleaner.recording.options import DEFAULT_TEMPLATE
from lmcleaner.training.models import load_model, load_tokenizer

_ENCODING = Encoding(template=DEFAULT_TEMPLATE, max_length=MAX_LENGTH)
_ANSWER_TOKENS = 24


def known(model: Path, rows: Sequence[Row]) -> float:
    """Mean answer probability of a model.

    Args:
        model: its folder.
        rows: questions and answers.

    Returns:
        A number in [0, 1]; see `answer_probabilities`.
    """
    probabilities = _probabilities(model, rows)
    return sum(probabilities) / len(probabilities)


def surest(model: Path, rows: Sequence[Row]) -> Row:
    """The row whose answer a model gives the highest probability."""
    return max(zip(_probabilities(model, rows), rows, strict=True), key=lambda pair: pair[0])[1]


def answer(model: Path, question: str) -> str:
    """The likeliest answer of a model, token by token.

    Args:
        model: its folder.
        question: what to ask, in the wording of the training rows.

    Returns:
        The answer without its end token.
    """
    tokenizer = load_tokenizer(str(model))
    prompt = DEFAULT_TEMPLATE.format(question=question)
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]])
    found = load_model(str(model), torch.float32).generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=_ANSWER_TOKENS, do_sample=False
    )
    return str(tokenizer.decode(found[0, tokens.shape[1] :], skip_special_tokens=True)).strip()


def comparison_table(
    models: Mapping[str, Path], seconds: Mapping[str, float], forgotten: Sequence[Row], retained: Sequence[Row]
) -> Table:
    """Compares models by what they know.

    Args:
        models: folder of each model by its name, in order.
        seconds: wall time of the commands that made them, where it was measured.
        forgotten: rows about the forgotten people.
        retained: rows about the others.

    Returns:
        One row for each model.
    """
    table = Table(
        title="mean probability of the right answer", caption="seconds: wall time of the command, start-up included"
    )
    table.add_column("model")
    for column in ("forgotten rows", "retained rows", "seconds"):
        table.add_column(column, justify="right")
    for name, folder in models.items():
        wall = f"{seconds[name]:.0f}" if name in seconds else ""
        table.add_row(name, f"{known(folder, forgotten):.3f}", f"{known(folder, retained):.3f}", wall)
    return table


def answers_table(models: Mapping[str, Path], row: Row) -> Table:
    """Shows what models answer to a question.

    Args:
        models: folder of each model by its name, in order.
        row: the question, and the answer that was trained.

    Returns:
        One row for each model, below the trained answer.
    """
    table = Table(title=row["question"])
    table.add_column("model")
    table.add_column("answer")
    table.add_row("(the training row)", row["answer"])
    for name, folder in models.items():
        table.add_row(name, answer(folder, row["question"]))
    return table


def same_bits(one: Path, other: Path) -> bool:
    """Whether two model folders hold byte for byte the same weights file."""
    return _weights(one) == _weights(other)


def relative_difference(one: Path, other: Path, origin: Path) -> float:
    """How far two models are from each other, relative to how far the second is from a third.

    Args:
        one: folder of a model.
        other: folder of another.
        origin: folder of the third.

    Returns:
        ‖one - other‖ / ‖origin - other‖ over all parameters.
    """
    vectors = [_vector(load_model(str(folder), torch.float32)) for folder in (one, other, origin)]
    return float((vectors[0] - vectors[1]).norm() / (vectors[2] - vectors[1]).norm())


def _probabilities(model: Path, rows: Sequence[Row]) -> list[float]:
    samples = _ENCODING.samples(rows, load_tokenizer(str(model)), str(model))
    return answer_probabilities(load_model(str(model), torch.float32), samples)


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def _vector(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])
