"""Records TRL's `SFTTrainer` by one more callback, then forgets a person.

python -m demo.materials guides
python docs/examples/trl_sft.py guides
"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from lmcleaner import LMCleanerCallback, TrainingLog, find_text, unlearn

folder = Path(sys.argv[1])
base, log, output = folder / "my-base", folder / "trl_sft" / "log", folder / "trl_sft" / "unlearned"

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(base)
texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(base),
    args=SFTConfig(
        output_dir=folder / "trl_sft" / "trained",
        num_train_epochs=3,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
    ),
    train_dataset=Dataset.from_list([{"text": text} for text in texts]),
    processing_class=tokenizer,
    callbacks=[LMCleanerCallback(log)],
)
trainer.train()

# Whose rows are they? A request may name them by their digests, whoever made the rows into tokens.
found = find_text(TrainingLog(log), "Erishas Ironcroft", tokenizer)
forget = ",".join(match.digest for match in found)
result = unlearn(log, forget, output=output, K="all", hessian_mode="secant")
print(f"{len(found)} rows forgotten, verdict {result.document['result']['verdict']}")
