"""Requests to a store of Zarr's: waited for, several at once, and with errors that a caller can know."""

import asyncio
import zipfile
import zlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import closing
from typing import Any, TypeVar

from zarr.abc.store import Store as Backend
from zarr.core.sync import sync
from zarr.storage import StorePath

Answer = TypeVar("Answer")

# What a backend that unpacks raises for bytes that aren't those that were packed.
BROKEN = (zipfile.BadZipFile, zlib.error)

_REQUESTS = 16  # at once, to one server: each waits long and works little


def run(backend: Backend, request: Coroutine[Any, Any, Answer]) -> Answer:
    """Waits for a request.

    Args:
        backend: what the request is for.
        request: a coroutine of the backend's.

    Returns:
        The answer.

    Raises:
        OSError: the backend reports something that only its own package has a name for.
    """
    [answer] = sync(_outcome(_opened(backend, request)))
    if not isinstance(answer, BaseException):
        return answer
    if isinstance(answer, BROKEN) or type(answer).__module__ == "builtins":
        raise answer
    raise OSError(f"{type(answer).__name__}: {answer}") from answer


async def entries(backend: Backend, folder: str) -> list[tuple[str, int]]:
    """All objects in a folder.

    Args:
        backend: that holds them.
        folder: prefix of the keys, with `/`, or "".

    Returns:
        Keys and sizes.
    """
    try:
        keys = [key async for key in _keys(backend, folder)]
    except FileNotFoundError:
        return []
    return list(zip(keys, await at_once([backend.getsize(key) for key in keys]), strict=True))


async def at_once(requests: list[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """Waits for many requests, a few of them at a time.

    Args:
        requests: coroutines of a backend's.

    Returns:
        The answers in the same order.
    """
    free = asyncio.Semaphore(_REQUESTS)

    async def wait(request: Coroutine[Any, Any, Answer]) -> Answer:
        async with free:
            return await request

    return await asyncio.gather(*(wait(request) for request in requests))


async def _keys(backend: Backend, folder: str) -> AsyncIterator[str]:
    async for key in backend.list_prefix(folder):
        if key.startswith(folder) and not key.endswith("/"):
            yield key


async def _opened(backend: Backend, request: Coroutine[Any, Any, Answer]) -> Answer:
    with closing(request):
        await StorePath.open(backend, "")  # some backends don't open themselves
        return await request


async def _outcome(request: Coroutine[Any, Any, Answer]) -> list[Answer | BaseException]:
    return await asyncio.gather(request, return_exceptions=True)
