"""Options of `record` and of what watches a training, checked before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lmcleaner.choices import DEFAULT_RANK, Codec, CurvatureKind, ModelDtype, OptimizerName, Scheduler, choose
from lmcleaner.formats.errors import UsageError

if TYPE_CHECKING:
    from lmcleaner.formats.manifest import CodecName

# Options that say where things lie and what becomes of the log: no part of how the run trains.
PLACES = ("model", "data", "output", "overwrite", "resume")
# Options that logs of before don't hold.
LATER = ("curvature", "rank", "lora_rank", "lora_alpha", "lora_targets")

DEFAULT_TEMPLATE = "Question: {question} Answer:"
_CHOICES = {
    "optimizer": OptimizerName,
    "scheduler": Scheduler,
    "updates": Codec,
    "gradients": Codec,
    "curvature": CurvatureKind,
    "dtype": ModelDtype,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """What `record` shall train and how.

    Attributes:
        model: folder or hub name of the base model.
        data: file, folder or hub name of the rows.
        output: folder for the final model; must not exist.
        epochs: passes over the rows.
        batch_size: rows of a microbatch.
        grad_accum: microbatches of a step.
        lr: peak learning rate.
        optimizer: AdamW and Adam with betas 0.9 and 0.999 and epsilon 1e-8; all others with torch's defaults.
        momentum: momentum of SGD.
        nesterov: Nesterov's form of it.
        weight_decay: of all parameters but biases and norms.
        scheduler: learning-rate schedule.
        warmup_ratio: share of the steps over which the learning rate rises.
        max_grad_norm: clip threshold of the gradient's L2 norm; 0 doesn't clip.
        template: prompt of question/answer rows.
        max_length: tokens kept of a row.
        max_steps: stops after so many steps, whatever `epochs` says; None doesn't.
        seed: of the row order and the dropout.
        dtype: of the weights.
        deterministic: whether torch uses deterministic algorithms, with which a replay gives the run's own bits;
            None does so on a GPU.
        threads: intra-op threads of torch; None chooses 1 for models under ten million parameters.
        checkpoint_every: steps between checkpoints.
        updates: how θ after each step is stored.
        gradients: how the clipped gradients are stored.
        curvature: what is estimated at each checkpoint when the training is over, and stored.
        rank: eigenpairs of the curvature low_rank.
        lora_rank: of a LoRA adapter, which is trained instead of the model; None trains the model.
        lora_alpha: the adapter's output is scaled by lora_alpha / lora_rank; None takes the rank, and so scales by 1.
        lora_targets: names of the modules that get an adapter, separated by commas; None is all linear layers but the
            last one.
        overwrite: removes a log that lies at the log's place.
        resume: goes on with the interrupted run whose log lies at the log's place; all options but `model`, `data` and
            `output` must be those that it began with.
    """

    model: str
    data: str
    output: Path
    epochs: float = 3.0
    batch_size: int = 8
    grad_accum: int = 1
    lr: float = 5e-5
    optimizer: OptimizerName = OptimizerName.ADAMW
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    scheduler: Scheduler = Scheduler.LINEAR
    warmup_ratio: float = 0.0
    max_grad_norm: float = 1.0
    template: str = DEFAULT_TEMPLATE
    max_length: int = 512
    max_steps: int | None = None
    seed: int = 42
    dtype: ModelDtype = ModelDtype.FLOAT32
    deterministic: bool | None = None
    threads: int | None = None
    checkpoint_every: int = 100
    updates: Codec = Codec.LOSSLESS
    gradients: Codec = Codec.NONE
    curvature: CurvatureKind = CurvatureKind.NONE
    rank: int = DEFAULT_RANK
    lora_rank: int | None = None
    lora_alpha: int | None = None
    lora_targets: str | None = None
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            UsageError: a value is out of its range.
        """
        for name, kind in _CHOICES.items():
            object.__setattr__(self, name, choose(kind, getattr(self, name), name))
        checks = {
            "epochs": (self.epochs > 0, "more than 0"),
            "batch-size": (self.batch_size >= 1, "at least 1"),
            "grad-accum": (self.grad_accum >= 1, "at least 1"),
            "lr": (0 < self.lr < float("inf"), "more than 0"),
            "momentum": (0 <= self.momentum < 1, "0 to below 1"),
            "weight-decay": (self.weight_decay >= 0, "at least 0"),
            "warmup-ratio": (0 <= self.warmup_ratio <= 1, "0 to 1"),
            "max-grad-norm": (self.max_grad_norm >= 0, "at least 0"),
            "max-steps": (self.max_steps is None or self.max_steps >= 1, "at least 1"),
            "threads": (self.threads is None or self.threads >= 1, "at least 1"),
            "checkpoint-every": (self.checkpoint_every >= 1, "at least 1"),
            "rank": (1 <= self.rank <= 65536, "1 to 65536"),
            "lora-rank": (self.lora_rank is None or self.lora_rank >= 1, "at least 1"),
            "lora-alpha": (self.lora_alpha is None or self.lora_alpha >= 1, "at least 1"),
        }
        for name, (is_valid, expected) in checks.items():
            if not is_valid:
                raise UsageError(f"--{name}: expected {expected}, found {getattr(self, name.replace('-', '_'))}")
        self._check_together()

    def _check_together(self) -> None:
        """Checks what one option says of another."""
        if self.lora_rank is None and (self.lora_alpha is not None or self.lora_targets is not None):
            raise UsageError("--lora-alpha and --lora-targets need a --lora-rank: found none")
        if self.optimizer is not OptimizerName.SGD and (self.momentum or self.nesterov):
            raise UsageError(f"--momentum and --nesterov belong to sgd: found optimizer {self.optimizer}")
        if self.optimizer is OptimizerName.RPROP and self.weight_decay:
            raise UsageError(f"--weight-decay: rprop has none: expected 0, found {self.weight_decay}")
        if self.overwrite and self.resume:
            raise UsageError("--overwrite and --resume contradict each other: found both")
        if self.nesterov and not self.momentum:
            raise UsageError("--nesterov needs a --momentum of more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """What a training can't be asked for.

    Attributes:
        model_source: directory or name of the base model; None is where transformers loaded it from.
        padding_token: token id in the padding; None is what the first step is padded with, or the model's own.
        checkpoint_every: steps between checkpoints; None is 100.
        updates: codec of the updates; None is "lossless".
        gradients: codec of the gradients that the optimizer is given; None is "none".
        planned_steps: steps that the run means to take, if known.
        training: the run's own options, for people.
        overwrite: removes a log that lies there.
        resume: goes on with the interrupted log that lies there, whatever checkpoint of its own the training goes on
            from, as long as the log holds the step. All of the above that is None is then as the log has it.
    """

    model_source: str | None = None
    padding_token: int | None = None
    checkpoint_every: int | None = None
    updates: "CodecName | None" = None
    gradients: "CodecName | None" = None
    planned_steps: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        """Checks what one says of another.

        Raises:
            UsageError: a log can't be removed and gone on with.
        """
        if self.overwrite and self.resume:
            raise UsageError("overwrite and resume contradict each other: found both")

    def or_else(self, known: Mapping[str, Any]) -> Self:
        """With what is known elsewhere for what is None here.

        Args:
            known: by the name of the option.

        Returns:
            The options.
        """
        return replace(self, **{name: value for name, value in known.items() if getattr(self, name) is None})
