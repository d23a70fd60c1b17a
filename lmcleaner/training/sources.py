"""Whether there is a model to load: a folder, or a model of the hub; light, so that it is known at once."""

import re
from pathlib import Path
from typing import Any

from lmcleaner.formats.errors import NotFoundError

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILES = ("config.json", "adapter_config.json", "tokenizer_config.json")  # one of them is in every model
_TIMEOUT_SECONDS = 10.0


def check_model(source: str) -> None:
    """Makes sure that a model can be looked for where a user says that it is.

    The hub is asked once, where its cache doesn't hold the name: loading would ask again and again for each file.

    Args:
        source: folder or hub name.

    Raises:
        NotFoundError: there is no such folder, and no such model on the hub, or the hub can't be reached.
    """
    if Path(source).expanduser().is_dir():
        return
    if source.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(source):
        raise _no_model(source, "no such folder")
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

    kinds: Any = errors
    try:
        if not any(isinstance(try_to_load_from_cache(source, name), str) for name in _FILES):
            HfApi().model_info(source, timeout=_TIMEOUT_SECONDS)
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        if not isinstance(error, errors.GatedRepoError):
            raise _no_model(source, "no such folder, and no such model on the hub, or a private one") from error
    except errors.OfflineModeIsEnabled as error:
        reason = "no such folder, nor is it in the hub's cache, and HF_HUB_OFFLINE keeps from asking the hub"
        raise _no_model(source, reason) from error
    except errors.HfHubHTTPError:
        return  # the hub answers, and loading says what
    except (OSError, kinds.HTTPError) as error:  # the root of the HTTP library's errors, whichever the hub's uses
        reason = f"no such folder, nor is it in the hub's cache, and the hub can't be reached: {error}"
        raise _no_model(source, reason) from error


def _no_model(source: str, reason: str) -> NotFoundError:
    return NotFoundError(
        f"no such model: {source}: {reason}", hint="check the spelling; --model takes a folder or the name of a model"
    )
