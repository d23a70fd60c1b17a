"""Loads models and tokenizers from a folder or a hub name; never runs code that comes with them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from lmcleaner.formats.canonical import sha256_hex
from lmcleaner.formats.errors import MismatchError, NotFoundError
from lmcleaner.formats.manifest import Manifest
from lmcleaner.training.adapters import add_adapter, load_adapter
from lmcleaner.training.fingerprint import model_fingerprint
from lmcleaner.training.sources import check_model
from lmcleaner.training.vectors import torch_dtype

_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "special_tokens")


def load_model(source: str, dtype: torch.dtype, attention: str | None = None) -> Any:
    """A causal language model with its weights, on the CPU.

    Args:
        source: folder or hub name.
        dtype: dtype of all floating-point weights.
        attention: attention implementation, or None for the library's choice.

    Returns:
        The transformers model.

    Raises:
        NotFoundError: nothing there that transformers can load.
    """
    from transformers import AutoModelForCausalLM

    check_model(source)
    try:
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_loadable("model", source, error) from error


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a model.

    Args:
        source: folder or hub name.

    Returns:
        The transformers tokenizer.

    Raises:
        NotFoundError: nothing there that transformers can load.
    """
    from transformers import AutoTokenizer

    check_model(source)
    if not holds_tokenizer(source):  # of which transformers makes one without words for some kinds of model
        raise NotFoundError(
            f"no tokenizer beside the model: {source}", hint="give the folder or hub name of a model with one: --model"
        )
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _not_loadable("tokenizer", source, error) from error


def holds_tokenizer(source: str) -> bool:
    """Whether a tokenizer can be expected there: of a hub name always, of a folder if it has a file of one.

    Args:
        source: folder or hub name.
    """
    folder = Path(source)
    return not folder.is_dir() or any(file.name.startswith(_TOKENIZER_FILES) for file in folder.iterdir())


def load_base_model(manifest: Manifest, source: str | None = None) -> nn.Module:
    """The base model of a log.

    Args:
        manifest: what the log says of the run.
        source: where the base model lies now, if it moved.

    Returns:
        The model as it was before training, with the run's dtype and attention.

    Raises:
        NotFoundError: it isn't there.
        MismatchError: it is another model.
        UsageError: it has an adapter, and PEFT isn't installed.
    """
    place, adapter = source or manifest.model.source, manifest.model.adapter
    model = _load_plain(manifest, place)
    if adapter is not None:
        model = add_adapter(model, adapter, manifest.model.dtype)
    _check_base(model, manifest, place)
    return model


def load_unlearned(manifest: Manifest, folder: Path, source: str | None = None) -> nn.Module:
    """What `unlearn` wrote into a folder: a model, or the base model with an adapter.

    Args:
        manifest: what the log says of the run.
        folder: the output folder.
        source: where the base model of an adapter lies now, if it moved.

    Returns:
        The model with the run's dtype and attention.

    Raises:
        NotFoundError: it isn't there.
        MismatchError: the adapter's base model is another one.
        UsageError: PEFT isn't installed.
    """
    if manifest.model.adapter is None:
        return _load_plain(manifest, str(folder))
    place = source or manifest.model.source
    if not (folder / "adapter_config.json").is_file():
        raise NotFoundError(f"no adapter: {folder}: expected adapter_config.json", hint="give the folder of `unlearn`")
    model = load_adapter(_load_plain(manifest, place), folder, manifest.model.dtype)
    _check_base(model, manifest, place)
    return model


def _load_plain(manifest: Manifest, place: str) -> nn.Module:
    adapter = manifest.model.adapter
    dtype = adapter.base_dtype if adapter is not None else manifest.model.dtype
    model: nn.Module = load_model(place, torch_dtype(dtype), manifest.numerics.attention)
    return model


def _check_base(model: nn.Module, manifest: Manifest, place: str) -> None:
    """Beside an adapter all that isn't trained must be the run's; what is trained comes from the log."""
    trained = {entry.name for entry in manifest.parameters}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    found = model_fingerprint(model, only_frozen=manifest.model.adapter is not None)
    if found != manifest.model.fingerprint:
        raise MismatchError(
            f"not the base model of this log: {place}: expected fingerprint {manifest.model.fingerprint}, "
            f"found {found}",
            hint="give the model that the run started from with --model",
        )


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's vocabulary and rules, for a fast one, or of its vocabulary."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    content = fast.to_str() if fast is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return sha256_hex(content.encode())


def padding_token(tokenizer: Any) -> int:
    """The token that batches are padded with: the tokenizer's own, else its end token, behind the attention mask."""
    chosen = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(chosen if chosen is not None else 0)


def _not_loadable(what: str, source: str, error: Exception) -> NotFoundError:
    reason = " ".join(str(error).split())
    return NotFoundError(f"can't load a {what}: {source}: {reason}", hint="give its folder or hub name with --model")
