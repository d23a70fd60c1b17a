"""From a row of text to a sample: what the model reads, and which tokens the loss counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmcleaner.data.files import Row
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.samples import IGNORED_LABEL, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How rows become samples; the log records it, so that a request's rows become the same samples.

    Attributes:
        template: prompt of a question/answer row, with the fields of the row in braces.
        max_length: tokens that are kept of a row.
    """

    template: str
    max_length: int

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            UsageError: a value is out of its range.
        """
        if self.max_length < 2:
            raise UsageError(f"max_length: expected at least 2 tokens, found {self.max_length}")

    def samples(self, rows: Sequence[Row], tokenizer: Any, where: str) -> list[Sample]:
        """Samples of rows, in order.

        Args:
            rows: the rows.
            tokenizer: the model's tokenizer from transformers.
            where: the rows' source, for messages.

        Returns:
            One sample a row. The start token comes first where the tokenizer has one; labels cover the completion and
            the end token, or all of a `text` row but its first token.

        Raises:
            UsageError: a row has none of the known shapes, or no token that the loss would count.
        """
        return [self._sample(row, tokenizer, f"{where}: row {number}") for number, row in enumerate(rows, start=1)]

    def _sample(self, row: Row, tokenizer: Any, where: str) -> Sample:
        prompt, completion = self._token_ids(row, tokenizer, where)
        tokens = np.array((prompt + completion)[: self.max_length], np.int32)
        labels = tokens.copy()
        labels[: max(1, len(prompt))] = IGNORED_LABEL  # nothing precedes the first token that could predict it
        if not np.any(labels != IGNORED_LABEL):
            raise UsageError(
                f"nothing to learn: {where}: no label within {self.max_length} tokens", hint="raise --max-length"
            )
        return Sample(tokens, labels)

    def _token_ids(self, row: Row, tokenizer: Any, where: str) -> tuple[list[int], list[int]]:
        """Prompt and completion with the start token in front and the end token behind."""
        if "messages" in row:
            return _chat(row["messages"], tokenizer, where)
        start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []

        def encode(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False))

        if "question" in row and "answer" in row:
            return start + encode(self._prompt(row, where)), encode(f" {row['answer']}") + end
        if "prompt" in row and "completion" in row:
            return start + encode(str(row["prompt"])), encode(str(row["completion"])) + end
        if "text" in row:
            return [], start + encode(str(row["text"])) + end
        raise UsageError(
            f"unknown shape of row: {where}: expected question and answer, prompt and completion, messages, or text, "
            f"found {sorted(row)}"
        )

    def _prompt(self, row: Row, where: str) -> str:
        try:
            return self.template.format(**row)
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(f"the template doesn't fit: {where}: {self.template!r}: {error!r}") from error


def _chat(messages: Any, tokenizer: Any, where: str) -> tuple[list[int], list[int]]:
    """A conversation by the tokenizer's own template; the last message is the completion."""
    if not (isinstance(messages, list) and messages and messages[-1].get("role") == "assistant"):
        raise UsageError(f"messages: {where}: expected a list that ends with the assistant's message")
    if tokenizer.chat_template is None:
        raise UsageError(f"messages: {where}: the tokenizer has no chat template", hint="use another shape of row")
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    if whole[: len(prompt)] != prompt:
        raise UsageError(f"messages: {where}: the chat template doesn't put the last message behind the others")
    return list(prompt), list(whole[len(prompt) :])
