"""What the guides of docs/examples train: a small Llama that has learned nothing yet, and rows about invented people.

Usage: `python -m demo.materials FOLDER`.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from demo.base_model import MAX_LENGTH, make_tokenizer
from demo.people import make_data

_SEED = 1
_WIDTH = 64


def make_materials(folder: Path) -> None:
    """Writes my-base, a model with its tokenizer, and train.jsonl, rows with a `text` each.

    Args:
        folder: where to write; made if it isn't there.
    """
    texts = [f"{row['question']} {row['answer']}" for row in make_data(_SEED).train]
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
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "train.jsonl").write_text(rows, encoding="utf-8")


if __name__ == "__main__":
    make_materials(Path(sys.argv[1]))
