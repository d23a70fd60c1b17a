"""Trains in two processes that average their gradients, recorded from outside; by itself, it forgets a person.

python -m demo.materials guides
lmcleaner record guides/several_processes/log -- torchrun --nproc-per-node 2 docs/examples/several_processes.py guides
python docs/examples/several_processes.py guides
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

folder = Path(sys.argv[1])
base, log, output = folder / "my-base", folder / "several_processes" / "log", folder / "several_processes" / "unlearned"
tokenizer = AutoTokenizer.from_pretrained(base)


def train() -> None:
    """What each process does: nothing here knows of the recording."""
    dist.init_process_group("gloo")
    texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
    rows = [tokenizer(text) for text in texts]
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batches = DataLoader(rows, batch_size=4, sampler=DistributedSampler(rows), collate_fn=collate)
    model = DistributedDataParallel(AutoModelForCausalLM.from_pretrained(base).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(3):
        batches.sampler.set_epoch(epoch)
        for batch in batches:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    dist.destroy_process_group()


def forget() -> None:
    """One process replays what two have done, with the same bits."""
    from lmcleaner import TrainingLog, find_text, unlearn

    # Whose rows are they? A request may name them by their digests, whoever made the rows into tokens.
    found = find_text(TrainingLog(log), "Erishas Ironcroft", tokenizer)
    names = ",".join(match.digest for match in found)
    result = unlearn(log, names, output=output, K="all", hessian_mode="secant")
    print(f"{len(found)} rows forgotten, verdict {result.document['result']['verdict']}")


if dist.is_torchelastic_launched():
    train()
else:
    forget()
