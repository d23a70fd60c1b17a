"""A small Llama with its tokenizer, pretrained on people who don't occur in the demonstration's data."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.optim.lr_scheduler import OneCycleLR
from transformers import DataCollatorForSeq2Seq, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.people import Row
from lmcleaner.data.encoding import Encoding
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.recording.options import DEFAULT_TEMPLATE

MAX_LENGTH = 512  # tokens of a row, as `record` has it by default
_VOCABULARY = 768
_STEPS = 400
_BATCH = 16
_PEAK_LR = 4e-3
_START, _END, _PADDING = "<s>", "</s>", "<pad>"


def make_base_model(folder: Path, rows: Sequence[Row], seed: int) -> int:
    """Pretrains a model on rows and writes it with its tokenizer.

    Args:
        folder: where to write, in Hugging Face format.
        rows: questions and answers that teach the language of the task.
        seed: of the weights and the order.

    Returns:
        Number of the model's parameters.
    """
    tokenizer = make_tokenizer([f"{DEFAULT_TEMPLATE.format(**row)} {row['answer']}" for row in rows])
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    samples = Encoding(template=DEFAULT_TEMPLATE, max_length=MAX_LENGTH).samples(rows, tokenizer, "pretraining")
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(tokenizer))
    _pretrain(model, _batches(samples, tokenizer, Random(seed)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())


def make_tokenizer(texts: Sequence[str]) -> Any:
    """Trains a byte-level BPE tokenizer with start, end and padding tokens.

    Args:
        texts: what to learn the merges from; any other text can be encoded too, byte by byte.

    Returns:
        The transformers tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_PADDING, _START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_object=tokenizer, bos_token=_START, eos_token=_END, pad_token=_PADDING, model_max_length=MAX_LENGTH
    )


def _config(tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _batches(samples: Sequence[Sample], tokenizer: Any, random: Random) -> Iterator[dict[str, torch.Tensor]]:
    """Gives `_STEPS` batches of rows drawn at random.

    Yields:
        `input_ids`, `labels` and `attention_mask`, int64 `[batch, seq]`.
    """
    collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED_LABEL)
    for _ in range(_STEPS):
        chosen = random.sample(samples, _BATCH)
        yield collate([{"input_ids": s.tokens.tolist(), "labels": s.labels.tolist()} for s in chosen])


def _pretrain(model: LlamaForCausalLM, batches: Iterator[dict[str, torch.Tensor]]) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_LR, weight_decay=0.01, fused=True)
    schedule = OneCycleLR(optimizer, _PEAK_LR, total_steps=_STEPS + 1, pct_start=0.1)
    for batch in batches:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
