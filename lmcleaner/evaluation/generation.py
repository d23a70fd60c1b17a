"""What a model answers: greedy decoding in batches, with a cache of keys and values.

Axes: batch, seq.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lmcleaner.evaluation.batching import batches_by_length
from lmcleaner.evaluation.forward import evaluating
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.progress import Progress, Silent
from lmcleaner.training.models import padding_token

_MAX_ROWS = 64  # sequences that grow together; more would wait for the longest of them


def true_answers(samples: Sequence[Sample], tokenizer: Any) -> list[str]:
    """The texts that a model should continue each row's beginning with.

    Args:
        samples: rows with at least one counted token.
        tokenizer: the model's, from transformers.

    Returns:
        One text for each row, without special tokens.
    """
    return [_text(sample.tokens[_prompt_length(sample) :].tolist(), tokenizer) for sample in samples]


def generate_answers(
    model: Any,
    samples: Sequence[Sample],
    tokenizer: Any,
    max_new_tokens: int,
    progress: Progress | None = None,
    what: str = "generating answers",
) -> list[str]:
    """Lets the model go on from each row's beginning, each time with the most likely token.

    The beginning is what stands before the first counted token; of a row that counts from its start, the first half.

    Args:
        model: a causal language model of transformers.
        samples: rows with at least one counted token.
        tokenizer: its tokenizer.
        max_new_tokens: where an answer is cut off; it also ends with the end token, and where the model's context ends.
        progress: is told of every batch.
        what: the rows' name for it.

    Returns:
        One text for each row, without special tokens.
    """
    progress = progress or Silent()
    prompts = [sample.tokens[: _prompt_length(sample)] for sample in samples]
    batches = batches_by_length([len(prompt) for prompt in prompts], max_rows=_MAX_ROWS)
    progress.begin(what, len(batches))
    answers = [""] * len(samples)
    for batch in batches:
        found = _generate(model, [prompts[index] for index in batch], tokenizer, max_new_tokens)
        for index, tokens in zip(batch, found, strict=True):
            answers[index] = _text(_until_end(tokens, tokenizer.eos_token_id), tokenizer)
        progress.advance()
    return answers


def _generate(model: Any, prompts: Sequence[Any], tokenizer: Any, max_new_tokens: int) -> list[list[int]]:
    """The tokens that follow each prompt."""
    from transformers import GenerationConfig

    device, length = next(model.parameters()).device, max(len(prompt) for prompt in prompts)
    tokens = np.full((len(prompts), length), padding_token(tokenizer), np.int64)
    mask = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):  # on the left, so that every row's answer begins in the same column
        tokens[row, length - len(prompt) :], mask[row, length - len(prompt) :] = prompt, 1
    context = getattr(model.config, "max_position_embeddings", None) or length + max_new_tokens
    settings = GenerationConfig(
        max_new_tokens=max(1, min(max_new_tokens, context - length)), do_sample=False, num_beams=1, use_cache=True,
        pad_token_id=padding_token(tokenizer), eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.no_grad(), evaluating(model):
        output = model.generate(
            input_ids=torch.from_numpy(tokens).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            generation_config=settings,
        )
    found: list[list[int]] = output[:, length:].tolist()
    return found


def _prompt_length(sample: Sample) -> int:
    """Tokens that are given to the model; what is continued of a text is the idea of MUSE (Shi et al., 2024, §3.1)."""
    first = int(np.argmax(sample.labels != IGNORED_LABEL))
    return first if first > 1 else max(1, len(sample.tokens) // 2)


def _until_end(tokens: list[int], end: int | None) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def _text(tokens: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
