"""Records a loop that tells the classic logger of every step, then forgets a person.

python -m demo.materials guides
python docs/examples/classic_logger.py guides
"""

import json
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from lmcleaner import TrainingLog, TrainingLogger, find_text, unlearn

folder = Path(sys.argv[1])
base, log, output = folder / "my-base", folder / "classic_logger" / "log", folder / "classic_logger" / "unlearned"

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base).train()
texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
batches = DataLoader([tokenizer(text) for text in texts], batch_size=8, shuffle=True, collate_fn=collate)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

# Made before the first forward pass, because it sees the training for itself; each step is held against what it saw.
logger = TrainingLogger(log, max_steps=len(batches), mode="sample", save_interval=20)
for step, batch in enumerate(batches):
    model(**batch).loss.backward()
    optimizer.step()
    logger.register_step(step_id=step, batch_id=step, eta=3e-3, model=model)
    optimizer.zero_grad()
logger.save_to_disk()

# Whose rows are they? A request may name them by their digests, whoever made the rows into tokens.
found = find_text(TrainingLog(log), "Erishas Ironcroft", tokenizer)
forget = ",".join(match.digest for match in found)
result = unlearn(log, forget, output=output, K="all", hessian_mode="secant")
print(f"{len(found)} rows forgotten, verdict {result.document['result']['verdict']}")
