"""Records a loop with Accelerate, which accumulates gradients over two batches, then forgets a person.

python -m demo.materials guides
python docs/examples/accelerate_loop.py guides
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from lmcleaner import TrainingLog, Watch, WatchOptions, find_text, unlearn

folder = Path(sys.argv[1])
base, log, output = folder / "my-base", folder / "accelerate_loop" / "log", folder / "accelerate_loop" / "unlearned"

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(base)
texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)

# `Watch` finds model, optimizer, clipping and accumulation by itself, through whatever Accelerate wraps around them.
with Watch(log, WatchOptions(checkpoint_every=20)):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = AutoModelForCausalLM.from_pretrained(base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = DataLoader([tokenizer(text) for text in texts], batch_size=4, shuffle=True, collate_fn=collate)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    for _ in range(3):
        for batch in batches:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

# Whose rows are they? A request may name them by their digests, whoever made the rows into tokens.
found = find_text(TrainingLog(log), "Erishas Ironcroft", tokenizer)
forget = ",".join(match.digest for match in found)
result = unlearn(log, forget, output=output, K="all", hessian_mode="secant")
print(f"{len(found)} rows forgotten, verdict {result.document['result']['verdict']}")
