"""The choices that a user makes by name; light, so that `--help` doesn't load torch."""

from enum import StrEnum
from typing import Literal, TypeVar

from lmcleaner.formats.errors import UsageError

Choice = TypeVar("Choice", bound=StrEnum)
Steps = int | None | Literal["auto"]  # K: None carries to the end of the run, "auto" until the deviation has settled

DEFAULT_RANK = 10  # eigenpairs of a curvature


def choose(kind: type[Choice], value: str, option: str) -> Choice:
    """The choice of a name.

    Args:
        kind: the choices.
        value: one of them, or its name.
        option: the option that asked, for messages.

    Returns:
        The choice.

    Raises:
        UsageError: there is no such choice.
    """
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"--{option}: expected one of {[choice.value for choice in kind]}, found {value!r}") from None


class OptimizerName(StrEnum):
    """Optimizers that a command can record with; the recorder takes those that need arguments besides."""

    ADAMW = "adamw"
    ADAM = "adam"
    ADAMW8BIT = "adamw8bit"
    ADAM8BIT = "adam8bit"
    LION8BIT = "lion8bit"
    SGD = "sgd"
    ADADELTA = "adadelta"
    ADAFACTOR = "adafactor"
    ADAGRAD = "adagrad"
    ADAMAX = "adamax"
    ASGD = "asgd"
    NADAM = "nadam"
    RADAM = "radam"
    RMSPROP = "rmsprop"
    RPROP = "rprop"


class Scheduler(StrEnum):
    """Learning-rate schedules of transformers that need no arguments of their own."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    POLYNOMIAL = "polynomial"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    INVERSE_SQRT = "inverse_sqrt"


class Codec(StrEnum):
    """How the parameters after every step, or the gradients, are stored."""

    LOSSLESS = "lossless"
    INT8 = "int8"
    INT4 = "int4"
    NONE = "none"


class ModelDtype(StrEnum):
    """Dtype of the weights during training."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Level(StrEnum):
    """What a removal does to a step that holds a forgotten row."""

    SAMPLE = "sample"  # the forgotten rows contribute no gradient
    BATCH = "batch"  # the whole step is skipped


class HessianMode(StrEnum):
    """How the sweep finds the gradient of the retained rows at θ′."""

    SECANT = "secant"
    EXACT = "exact"
    GGN = "GGN"
    EMPIRICAL_FISHER = "empirical_fisher"
    DIAG = "diag"
    DIAG_HESSIAN = "diag_hessian"
    LOW_RANK = "low_rank"
    FISHER = "fisher"


# Modes whose curvature is written down, so that they need no row for a product.
WRITTEN = frozenset({HessianMode.DIAG, HessianMode.DIAG_HESSIAN, HessianMode.LOW_RANK, HessianMode.FISHER})


class CurvatureKind(StrEnum):
    """Which curvature a log holds, for the mode of the same name."""

    NONE = "none"
    DIAG = "diag"
    DIAG_HESSIAN = "diag_hessian"
    LOW_RANK = "low_rank"


class Propagation(StrEnum):
    """How a deviation is carried from step to step."""

    OPTIMIZER = "optimizer"  # through the optimizer that trained the model
    PAPER = "paper"  # v - η(H + λI)v, Algorithm 1 of LMCleaner, which assumes plain SGD


class Denominator(StrEnum):
    """What the counterfactual divides a step's summed loss by."""

    LOGGED = "logged"
    RETAINED = "retained"


class Rounding(StrEnum):
    """How weights are rounded when a model is deployed."""

    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
