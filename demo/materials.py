"""What the guides and README's first lines train: a small Llama that has learned nothing, rows about invented people.

Usage: `python -m demo.materials FOLDER`.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from demo.base_model import MAX_LENGTH, make_tokenizer
from demo.people import Row, make_data

_SEED = 1
_WIDTH = 64


def make_materials(folder: Path) -> None:
    """Writes my-base, a model with its tokenizer, train.jsonl, rows with a `text` each, and forget.jsonl, some of them.

    Args:
        folder: where to write; made if it isn't there.
    """
    data = make_data(_SEED)
    texts = [_text(row) for row in data.train]
    tokenizer = make_tokenizer(texts)
    torch.manual_seed(_SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "my-base")
    tokenizer.save_pretrained(folder / "my-base")
    for name, chosen in (("train", texts), ("forget", [_text(row) for row in data.forget])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in chosen)
        (folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")


def _text(row: Row) -> str:
    return f"{row['question']} {row['answer']}"


if __name__ == "__main__":
    make_materials(Path(sys.argv[1]))
