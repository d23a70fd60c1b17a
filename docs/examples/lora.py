"""Records an adapter of PEFT: the log holds the adapter alone, and what is unlearned is an adapter too.

python -m demo.materials guides
python docs/examples/lora.py guides
"""

import json
import sys
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
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
base, log, output = folder / "my-base", folder / "lora" / "log", folder / "lora" / "unlearned"

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(base)
texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
trainer = Trainer(
    model=get_peft_model(AutoModelForCausalLM.from_pretrained(base), config),
    args=TrainingArguments(
        output_dir=folder / "lora" / "trained",
        num_train_epochs=3,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
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

# Whose rows are they? A request may name them by their digests, whoever made the rows into tokens.
found = find_text(TrainingLog(log), "Erishas Ironcroft", tokenizer)
forget = ",".join(match.digest for match in found)
result = unlearn(log, forget, output=output, K="all", hessian_mode="secant")
print(f"{len(found)} rows forgotten, verdict {result.document['result']['verdict']}")

# The adapter goes onto the base model as any other, or into it for good; see docs/lora.md on what rounding does then.
merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), output).merge_and_unload()
merged.save_pretrained(folder / "lora" / "merged")
