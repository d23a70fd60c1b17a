"""Small real runs: a Llama of a few thousand parameters, its tokenizer, rows, and a recorded training."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lmcleaner.choices import HessianMode, OptimizerName
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.recording.options import RecordOptions
from lmcleaner.recording.training import record
from lmcleaner.training.models import load_base_model, load_model
from lmcleaner.training.numerics import replay_device
from lmcleaner.training.replay import ReplayModel
from lmcleaner.unlearning.options import UnlearnOptions
from lmcleaner.unlearning.run import UnlearnResult, unlearn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where runs are recorded
WORDS = [
    "who", "what", "where", "is", "was", "born", "lives", "works", "in", "the", "a", "of", "ada", "ben", "cleo", "dan",
    "eva", "fay", "gus", "north", "south", "river", "mill",
]  # fmt: skip
SPECIAL = ["<s>", "</s>", "<pad>", "?", ".", "Question:", "Answer:"]


@dataclass(frozen=True)
class TinyRun:
    """A recorded run and where its parts lie."""

    base: Path
    data: Path
    log: Path
    trained: Path
    options: RecordOptions

    def open(self) -> TrainingLog:
        return TrainingLog(self.log)

    def copied(self, log: Path) -> "TinyRun":
        """The same run with a copy of its log, which may be changed."""
        return replace(self, log=Path(shutil.copytree(self.log, log)))

    def digests(self, start: int, stop: int) -> str:
        """A request for samples of the log, in the order of their first use."""
        return ",".join(digest.hex() for digest in list(self.open().sample_rows)[start:stop])

    def replay_model(self) -> ReplayModel:
        manifest = self.open().manifest
        return ReplayModel(load_base_model(manifest), manifest, replay_device(manifest))


def write_base_model(folder: Path, *, dropout: float = 0.0, seed: int = 0, **config: Any) -> Path:
    """Saves a tiny Llama, random but seeded, with a word-level tokenizer."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="?"
    )
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = LlamaConfig(
        **{**shape, "vocab_size": len(vocabulary), "num_key_value_heads": 1, "max_position_embeddings": 64, **config},
        attention_dropout=dropout,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(settings).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Distinct question/answer rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def words(number: int) -> str:
        return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (number,), generator=generator))

    return [{"question": words(3 + i % 4), "answer": words(2 + i % 5)} for i in range(count)]


def write_rows(path: Path, content: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def record_tiny(base: Path, folder: Path, *, num_rows: int = 20, num_forget: int = 2, **options: Any) -> TinyRun:
    """Records a run on `num_rows` rows, of which the last `num_forget` also stand in forget.jsonl beside them."""
    content = rows(num_rows)
    data = write_rows(folder / "train.jsonl", content)
    write_rows(folder / "forget.jsonl", content[-num_forget:])
    chosen = {"epochs": 2, "batch_size": 4, "lr": 1e-2, "warmup_ratio": 0.1, "checkpoint_every": 4, **options}
    settings = RecordOptions(model=str(base), data=str(data), output=folder / "trained", **chosen)
    record(folder / "log", settings)
    return TinyRun(base, data, folder / "log", folder / "trained", settings)


def unlearn_tiny(run: TinyRun, output: Path, mode: str = "secant", **options: Any) -> UnlearnResult:
    chosen = {"forget": "forget", "K": None, "ledger": options.get("redact", False), **options}
    return unlearn(run.log, UnlearnOptions(output=output, hessian_mode=HessianMode(mode), **chosen))


def parameters_in(folder: Path) -> dict[str, Tensor]:
    """The parameters of a saved model."""
    model = load_model(str(folder), torch.float32)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def content_of(log: Path) -> tuple[Any, ...]:
    """What must be the same in every log of the run; its seconds never are."""
    opened = TrainingLog(log)
    tables = {name: table for name, table in opened.commit.tables.items() if name != "steps/seconds"}
    return opened.num_steps, opened.commit.finished, tables, opened.commit.checkpoints, opened.commit.self_check


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name].cpu(), right[name].cpu()) for name in left)


SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adam": {"optimizer": OptimizerName.ADAM},
    "sgd": {"optimizer": OptimizerName.SGD, "lr": 0.1},
    "sgd with momentum": {"optimizer": OptimizerName.SGD, "lr": 0.1, "momentum": 0.9},
    "sgd with nesterov momentum": {"optimizer": OptimizerName.SGD, "lr": 0.1, "momentum": 0.9, "nesterov": True},
    "accumulation with a partial last step": {"grad_accum": 3, "num_rows": 22},
    "weight decay with no-decay groups": {"weight_decay": 0.1},
    "no clipping": {"max_grad_norm": 0.0},
    "tight clipping": {"max_grad_norm": 0.05},
}


@dataclass
class Recording:
    """What an operation reported."""

    lines: list[str] = field(default_factory=list)
    steps: int = 0

    def say(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, what: str, total: int) -> None:
        self.lines.append(f"{what}: {total}")

    def advance(self) -> None:
        self.steps += 1
