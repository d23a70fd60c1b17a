"""Records a training loop of one's own, then forgets a person.

python -m demo.materials guides
python docs/examples/own_loop.py guides
"""

import json
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from lmcleaner import Recorder, RunDescription, TrainingLog, find_text, unlearn

folder = Path(sys.argv[1])
base, log, output = folder / "my-base", folder / "own_loop" / "log", folder / "own_loop" / "unlearned"

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base).train()
texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
batches = DataLoader([tokenizer(text) for text in texts], batch_size=8, shuffle=True, collate_fn=collate)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=3 * len(batches))

# The loop tells what no hook can see: where the model came from, the padding, and what gradients are clipped at.
description = RunDescription(model_source=str(base), padding_token=tokenizer.pad_token_id, max_grad_norm=1.0)
with Recorder(log, model, optimizer, description):
    for _ in range(3):
        for batch in batches:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

# Whose rows are they? A request may name them by their digests, whoever made the rows into tokens.
found = find_text(TrainingLog(log), "Erishas Ironcroft", tokenizer)
forget = ",".join(match.digest for match in found)
result = unlearn(log, forget, output=output, K="all", hessian_mode="secant")
print(f"{len(found)} rows forgotten, verdict {result.document['result']['verdict']}")
