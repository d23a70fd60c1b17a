"""What `make demo` runs: records a training run, unlearns two people, and compares with an honest retrain.

Usage: `python demo/run.py [FOLDER]`; by default ./demo-run.
"""

import os
import shutil
import sys
from pathlib import Path

_MARKER = ".made-by-lmcleaner-demo"
_EXISTS = 11  # exit codes of lmcleaner
_INTERRUPTED = 130

# Read when the libraries are imported. One thread: a tiny model's threads wait at barriers for longer than they work.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}


def main() -> int:
    """Runs the tour in a fresh folder.

    Returns:
        The exit code: 0, or that of the command that failed.
    """
    arguments = sys.argv[1:]
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        sys.stderr.write("usage: python demo/run.py [FOLDER]\n")
        return 0 if arguments[0] in {"-h", "--help"} else 2
    folder = Path(arguments[0] if arguments else "demo-run")
    if not _is_ours(folder):
        sys.stderr.write(
            f"error: not a folder that the demo made: {folder}: expected nothing there, or {_MARKER} in it\n\n"
            "hint: give another folder; this one is left as it is\n"
        )
        return _EXISTS
    _start_afresh(folder)
    os.environ.update(_ENVIRONMENT | os.environ)
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from demo.tour import CommandFailedError, Tour

    try:
        Tour(folder).run()
    except CommandFailedError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _is_ours(folder: Path) -> bool:
    """Whether the folder may be removed: it has the marker, or isn't there, or is empty."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return False
    return not folder.exists() or (folder / _MARKER).is_file() or not any(folder.iterdir())


def _start_afresh(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / _MARKER).write_text("`python demo/run.py` removes this folder when it runs again.\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
