"""Adapters of PEFT, such as LoRA (Hu et al., 2022): a few trained parameters in a base model that stays as it is."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from lmcleaner.formats.documents import Json
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.manifest import AdapterEntry
from lmcleaner.training.vectors import frozen_dtype_name

_NAME = "default"  # PEFT's own; an adapter of another name is saved in a folder of its own


def is_adapted(module: nn.Module) -> bool:
    """Whether PEFT wraps the model; PEFT isn't imported for it."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(module, peft.PeftModel)


def without_adapter(module: nn.Module) -> nn.Module:
    """The model that PEFT wraps, with the adapter's layers in it; a model that it doesn't wrap itself."""
    found: Any = module
    base: nn.Module = found.get_base_model() if is_adapted(module) else module
    return base


def describe_adapter(module: nn.Module) -> AdapterEntry | None:
    """What a log must hold to put the adapter into its base model again.

    Args:
        module: the model.

    Returns:
        The entry; None of a model that PEFT doesn't wrap.

    Raises:
        UsageError: several adapters, virtual tokens, trained parameters that don't go into the adapter's file, or a
            base model of several dtypes.
    """
    if not is_adapted(module):
        if getattr(module, "peft_config", None):
            raise UsageError(
                "an adapter inside the model: expected one that PEFT wraps", hint="make it with peft.get_peft_model"
            )
        return None
    wrapped: Any = module
    if list(wrapped.peft_config) != [_NAME] or wrapped.peft_config[_NAME].is_prompt_learning:
        raise UsageError(
            f"unsupported adapter: expected one, named {_NAME!r}, of no virtual tokens, found "
            f"{ {name: str(config.peft_type.value) for name, config in wrapped.peft_config.items()} }"
        )
    _check_saved(wrapped)
    frozen = {parameter.dtype for parameter in module.parameters() if not parameter.requires_grad}
    if len(frozen) != 1:
        raise UsageError(f"the base model's weights must share one dtype: found {sorted(map(str, frozen))}")
    return AdapterEntry(config=_plain(wrapped.peft_config[_NAME].to_dict()), base_dtype=frozen_dtype_name(frozen.pop()))


def new_lora(base: nn.Module, rank: int, alpha: int, targets: str | None) -> nn.Module:
    """Puts a LoRA adapter into a model (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022).

    Args:
        base: the base model; is changed. An adapter of one in bfloat16 is in float32.
        rank: of the adapter's matrices; the first of each pair is drawn from torch's generator, the second is zero.
        alpha: their product is scaled by alpha / rank.
        targets: names of the modules that get an adapter, or their last parts, separated by commas; None is all linear
            layers but the last one.

    Returns:
        The wrapped model, of which only the adapter is trained.

    Raises:
        UsageError: PEFT isn't installed, or a target isn't there or can't have an adapter.
    """
    peft = _peft()
    names = [name.strip() for name in targets.split(",")] if targets is not None else []
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=names or "all-linear", task_type=peft.TaskType.CAUSAL_LM
    )
    modules = [name for name, _ in base.named_modules()]
    missing = [name for name in names if not name or not any(f".{m}".endswith(f".{name}") for m in modules)]
    if missing:
        raise UsageError(f"--lora-targets: no such module in the {type(base).__name__}: {missing[0]!r}")
    try:
        wrapped: nn.Module = peft.get_peft_model(base, config)
    except ValueError as error:
        raise UsageError(f"--lora-targets: {error}") from error
    return wrapped


def add_adapter(base: nn.Module, entry: AdapterEntry, dtype: str) -> nn.Module:
    """Wraps a base model as the run did; the adapter's values are those that PEFT begins with.

    Args:
        base: the base model; is changed.
        entry: what the log holds of the adapter.
        dtype: of the adapter's parameters.

    Returns:
        The wrapped model.

    Raises:
        UsageError: PEFT isn't installed.
    """
    peft = _peft()
    # PEFT enters where the base model lies now, and warns where it once lay elsewhere.
    config = peft.PeftConfig.from_peft_type(**entry.config | {"base_model_name_or_path": None})
    wrapped: nn.Module = peft.get_peft_model(base, config, autocast_adapter_dtype=dtype == "float32")
    return wrapped


def load_adapter(base: nn.Module, folder: Path, dtype: str) -> nn.Module:
    """Wraps a base model with the adapter in a folder; arguments as in `add_adapter`.

    Raises:
        UsageError: PEFT isn't installed.
    """
    wrapped: nn.Module = _peft().PeftModel.from_pretrained(
        base, str(folder), is_trainable=True, autocast_adapter_dtype=dtype == "float32"
    )
    return wrapped


def _check_saved(wrapped: Any) -> None:
    """What is trained must be in the file that PEFT writes, or the unlearned adapter would lack it."""
    saved = {tensor.data_ptr() for tensor in _peft().get_peft_model_state_dict(wrapped).values()}
    outside = [name for name, p in wrapped.named_parameters() if p.requires_grad and p.data_ptr() not in saved]
    if outside:
        raise UsageError(
            f"a trained parameter outside of the adapter: {outside[0]}",
            hint="name its module in the adapter's modules_to_save, or freeze it",
        )


def _plain(config: Json) -> Json:
    """As JSON, with sets in order; to be trained, whatever the configuration says."""
    ordered = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    plain: Json = json.loads(json.dumps(ordered))
    return plain | {"inference_mode": False}


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError as error:
        raise UsageError(
            "adapters need PEFT, which is not installed", hint="`pip install 'lmcleaner[peft]'`"
        ) from error
