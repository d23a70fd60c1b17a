"""Names a model by its content."""

import hashlib

import torch
from torch import nn

from lmcleaner.formats.canonical import little_endian_bytes
from lmcleaner.training.vectors import bits_of


def model_fingerprint(module: nn.Module, *, only_frozen: bool = False) -> str:
    """SHA-256 over name, dtype, shape and digest of every tensor of the model's state.

    Args:
        module: a model on any device; non-persistent buffers don't count.
        only_frozen: leaves out what is trained.

    Returns:
        64 hexadecimal digits that don't depend on where or how the model is stored.
    """
    content = hashlib.sha256()
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        if only_frozen and tensor.requires_grad:
            continue
        content.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        is_plain = tensor.dtype == torch.float16 or not tensor.is_floating_point()
        values = tensor.detach().cpu().numpy() if is_plain else bits_of([tensor])
        content.update(hashlib.sha256(little_endian_bytes(values)).digest())
    return content.hexdigest()
