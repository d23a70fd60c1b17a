"""Records a Hugging Face `Trainer` by one more callback, then forgets a person.

python -m demo.materials guides
python docs/examples/hf_trainer.py guides
"""

import json
import sys
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lmcleaner import LMCleanerCallback, TrainingLog, find_text, unlearn

folder = Path(sys.argv[1])
base, log, output = folder / "my-base", folder / "hf_trainer" / "log", folder / "hf_trainer" / "unlearned"

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(base)
texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
trainer = Trainer(
    model=AutoModelForCausalLM.from_pretrained(base),
    args=TrainingArguments(
        output_dir=folder / "hf_trainer" / "trained",
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
    ),
    train_dataset=[tokenizer(text) for text in texts],
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    processing_class=tokenizer,
    callbacks=[LMCleanerCallback(log)],
)
trainer.train()
trainer.save_model()

# Whose rows are they? A request may name them by their digests, whoever made the rows into tokens.
found = find_text(TrainingLog(log), "Erishas Ironcroft", tokenizer)
forget = ",".join(match.digest for match in found)
result = unlearn(log, forget, output=output, K="all", hessian_mode="secant")
print(f"{len(found)} rows forgotten, verdict {result.document['result']['verdict']}")
