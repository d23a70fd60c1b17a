"""Random Llamas with a tokenizer of numbered words, and rows of such words: enough to measure costs on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = {"<s>": 0, "</s>": 1, "<pad>": 2}


def write_model(folder: Path, shape: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> int:
    """Writes a random model of this shape, with its tokenizer.

    Args:
        folder: where to.
        shape: of the `LlamaConfig`, the vocabulary among it.
        dtype: of the weights.

    Returns:
        Number of parameters.
    """
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    model.to(dtype).save_pretrained(folder)
    vocabulary = _SPECIAL | {f"w{i}": i for i in range(len(_SPECIAL), shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )
    wrapped.save_pretrained(folder)
    return int(model.num_parameters())


def random_rows(count: int, words: int, vocabulary: int) -> list[str]:
    """Lines of a JSON lines file, the same each time."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(_SPECIAL), vocabulary, (count, words), generator=generator).tolist()
    return [json.dumps({"text": " ".join(f"w{word}" for word in row)}) + "\n" for row in drawn]
