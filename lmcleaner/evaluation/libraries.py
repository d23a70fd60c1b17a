"""The libraries of the extras `evaluate` and `tasks`."""

from typing import Any

from lmcleaner.formats.errors import NotFoundError

_HINT = "`pip install 'lmcleaner[evaluate]'`"


def check_libraries() -> None:
    """Makes sure that all of them are installed.

    Raises:
        NotFoundError: one isn't.
    """
    scipy_stats()
    rouge_scorer()


def scipy_stats() -> Any:
    """The module `scipy.stats`.

    Returns:
        The module.

    Raises:
        NotFoundError: scipy isn't installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise NotFoundError("this metric needs the scipy library", hint=_HINT) from error
    return stats


def rouge_scorer() -> Any:
    """The module `rouge_score.rouge_scorer`.

    Returns:
        The module.

    Raises:
        NotFoundError: rouge-score isn't installed.
    """
    try:
        from rouge_score import rouge_scorer as module
    except ImportError as error:
        raise NotFoundError("ROUGE needs the rouge-score library", hint=_HINT) from error
    return module


def lm_eval() -> Any:
    """The module `lm_eval`, EleutherAI's lm-evaluation-harness.

    Returns:
        The module.

    Raises:
        NotFoundError: lm_eval isn't installed.
    """
    try:
        import lm_eval as module
    except ImportError as error:
        raise NotFoundError("--tasks needs the lm_eval library", hint="`pip install 'lmcleaner[tasks]'`") from error
    return module
