"""What decides the last bit of a step: threads, denormals, determinism, kernels, random numbers."""

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.manifest import Manifest, NumericsEntry

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_LIBRARIES = (
    "lmcleaner",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "trl",
    "numpy",
    "zarr",
    "numcodecs",
)


def current_numerics(attention: str, device: torch.device, autocast: str | None = None) -> NumericsEntry:
    """What this process would compute a step with now.

    Args:
        attention: attention implementation of the model.
        device: where the model lies.
        autocast: what its forward passes are cast to, if they are.

    Returns:
        The entry of a manifest.
    """
    return NumericsEntry(
        device=device.type,
        device_name=device_name(device.type),
        threads=torch.get_num_threads(),
        flush_denormal=is_flushing_denormals(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        attention=attention,
        rng_bytes=len(rng_state(device)),
        autocast=autocast,
        matmul=matmul_precision(device.type),
        cublas_workspace=os.environ.get(CUBLAS_WORKSPACE) if device.type == "cuda" else None,
    )


def matmul_precision(device: str) -> str:
    """In which precision float32 matrices are multiplied; `TrainingArguments(tf32=True)` changes it, for example.

    Args:
        device: device type, "cpu" or "cuda".

    Returns:
        "ieee", "tf32" or "bf16".
    """
    found = str(_matmul(device).fp32_precision)
    return "ieee" if found == "none" else found  # none: nobody asked for another


def _matmul(device: str) -> Any:
    backends: Any = torch.backends  # whose types don't name all that is in them
    return backends.cuda.matmul if device == "cuda" else backends.mkldnn.matmul


def autocast_dtype(device: torch.device) -> str | None:
    """What torch's autocast casts to at this place of a program; None where it is off."""
    is_on = torch.is_autocast_enabled(device.type)
    return str(torch.get_autocast_dtype(device.type)).removeprefix("torch.") if is_on else None


def autocasting(entry: NumericsEntry, device: torch.device) -> AbstractContextManager[object]:
    """Casts a forward pass as the run did; one for each pass, since autocast keeps the weights that it has cast."""
    return nullcontext() if entry.autocast is None else torch.autocast(device.type, getattr(torch, entry.autocast))


@contextmanager
def restored_numerics(entry: NumericsEntry) -> Iterator[None]:
    """Computes as the run did inside the block, and as before after it.

    Args:
        entry: what the run computed with.

    Yields:
        Nothing.
    """
    computing = computing_with(
        entry.threads, entry.flush_denormal, entry.deterministic, warn_only=entry.warn_only,
        cublas_workspace=entry.cublas_workspace,
    )  # fmt: skip
    with computing, _multiplying_in(entry.matmul, entry.device):
        yield


@contextmanager
def computing_with(
    threads: int,
    flush_denormal: bool,
    deterministic: bool,
    *,
    warn_only: bool = False,
    cublas_workspace: str | None = None,
) -> Iterator[None]:
    """Sets what decides the last bit inside the block, and sets it back after it.

    Args:
        threads: intra-op threads of torch.
        flush_denormal: whether to flush denormal numbers to zero.
        deterministic: whether torch shall use deterministic algorithms.
        warn_only: whether it shall only warn where an operation has none.
        cublas_workspace: CUBLAS_WORKSPACE_CONFIG, which a process reads when it first multiplies on a GPU; None leaves
            it.

    Yields:
        Nothing.
    """
    before = (
        torch.get_num_threads(),
        is_flushing_denormals(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    _set(threads, flush_denormal, deterministic, warn_only)
    _set_variable(CUBLAS_WORKSPACE, cublas_workspace or workspace)
    try:
        yield
    finally:
        _set(*before)
        _set_variable(CUBLAS_WORKSPACE, workspace)


def _set(threads: int, flush_denormal: bool, deterministic: bool, warn_only: bool) -> None:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(flush_denormal)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@contextmanager
def _multiplying_in(precision: str, device: str) -> Iterator[None]:
    """Multiplies float32 matrices in this precision on this type of device."""
    matmul = _matmul(device)
    before = matmul.fp32_precision
    if matmul_precision(device) != precision:
        matmul.fp32_precision = precision
    try:
        yield
    finally:
        if matmul.fp32_precision != before:
            matmul.fp32_precision = before


def is_flushing_denormals() -> bool:
    """Whether this thread flushes denormal numbers; torch can set it but not say it."""
    smallest_normal = torch.tensor([torch.finfo(torch.float32).tiny])
    return bool((smallest_normal / 2 == 0).item())


def default_threads(num_elements: int) -> int:
    """One thread for small models, torch's own number above.

    Threads of a tiny model wait at barriers for longer than they work: on a busy machine of two cores a step went from
    0.17 s to 4.4 s. From about ten million parameters on the work outweighs the barriers.

    Args:
        num_elements: parameters of the model.

    Returns:
        Number of intra-op threads.
    """
    return 1 if num_elements < 10_000_000 else torch.get_num_threads()


def rng_state(device: torch.device) -> bytes:
    """State of the generators that a forward pass on `device` may draw from: the CPU's, then the accelerator's."""
    state = torch.get_rng_state().numpy().tobytes()
    if device.type == "cuda":
        state += torch.cuda.get_rng_state(device).numpy().tobytes()
    return state


def restore_rng(state: bytes, device: torch.device) -> None:
    """Sets the generators to a state that `rng_state` gave on the same type of device."""
    buffer = torch.from_numpy(np.frombuffer(state, np.uint8).copy())
    cpu_bytes = len(torch.get_rng_state())
    torch.set_rng_state(buffer[:cpu_bytes])
    if device.type == "cuda":
        torch.cuda.set_rng_state(buffer[cpu_bytes:], device)


def device_name(device: str) -> str:
    """Model of the processor or accelerator."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_bytes(device: torch.device) -> int:
    """Memory of the machine, or of the accelerator, whoever uses it now."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def environment() -> dict[str, str]:
    """Versions of the libraries, the interpreter and the system."""
    found = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    found["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS", "")
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def computed_on(device: torch.device) -> dict[str, str]:
    """Where and with what something is computed, as documents state it.

    Args:
        device: where.

    Returns:
        `environment` with the `device`, and its model in brackets.
    """
    return environment() | {"device": f"{device} ({device_name(str(device))})"}


def replay_device(manifest: Manifest, wanted: str | None = None) -> torch.device:
    """Where to compute.

    Args:
        manifest: what the log says of the run.
        wanted: "cpu", "cuda" or "cuda:N"; None is the run's type of device where this machine has it, else the CPU.

    Returns:
        The device.

    Raises:
        UsageError: no such device here.
    """
    if wanted is None:
        wants_cuda = manifest.numerics.device == "cuda"
        return torch.device("cuda" if wants_cuda and torch.cuda.is_available() else "cpu")
    count = torch.cuda.device_count()
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{number}" for number in range(count))]
    if wanted not in known:
        raise UsageError(f"no such device: --device: expected one of {', '.join(known)}, found {wanted!r}")
    return torch.device(wanted)


def unrestorable(manifest: Manifest, device: torch.device) -> list[str]:
    """What this machine can't restore of the run, so that bits may differ; empty where replay is exact.

    Args:
        manifest: what the log says of the run.
        device: where it is replayed.

    Returns:
        One "what: expected, found" each.
    """
    loss = manifest.model.loss
    extras = ["peft"] * (manifest.model.adapter is not None) + ["trl"] * (loss is not None and "trl" in loss.name)
    bit_deciding = ("torch", "transformers", "cpu_capability", *extras)
    now = environment()
    then = manifest.environment
    differences = [
        f"{name}: the run had {then.get(name)}, here is {now[name]}"
        for name in bit_deciding
        if then.get(name) != now[name]
    ]
    if (device.type, device_name(str(device))) != (manifest.numerics.device, manifest.numerics.device_name):
        run_device = f"{manifest.numerics.device} ({manifest.numerics.device_name})"
        differences.append(f"device: the run had {run_device}, here is {device.type} ({device_name(str(device))})")
    return differences
