"""Writes the golden logs, and in `expected.json` what a reader must find in each.

`python formats/golden/make.py` adds the logs that aren't there; a log that is there is never written anew.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmcleaner.formats.bits import Bits
from lmcleaner.formats.canonical import array_digest
from lmcleaner.formats.codecs import CODECS
from lmcleaner.formats.commit import Change
from lmcleaner.formats.curvature import curvature_writer
from lmcleaner.formats.generation import GenerationWriter
from lmcleaner.formats.golden.runs import GOLDEN, Golden, Run, make_run, redacted
from lmcleaner.formats.manifest import CodecName
from lmcleaner.formats.reader import TrainingLog
from lmcleaner.formats.samples import Sample
from lmcleaner.formats.stacks import spans_of
from lmcleaner.formats.steps import Checkpoint
from lmcleaner.formats.store import Store, open_store
from lmcleaner.formats.tree import Tree
from lmcleaner.formats.writer import LogWriter, write_commit, write_metadata

FOLDER = Path(__file__).parent
LOG, EXPECTED = "log", "expected.json"


def write_log(location: Path | Store, golden: Golden) -> Run:
    """Writes the log.

    Args:
        location: where it shall lie.
        golden: how it is made.

    Returns:
        The run that the log holds in the end.
    """
    run, store = make_run(golden), open_store(location, writable=True)
    with LogWriter.create(store, run.manifest, run.checkpoints[0]) as writer:
        _append(writer, run)
        writer.commit(finished=True)
    if run.curvature:
        _add_curvature(store, run)
    if not golden.is_redacted:
        return run
    run = redacted(run, golden)
    _write_next_generation(store, run)
    return run


def _add_curvature(store: Store, run: Run) -> None:
    log = TrainingLog(store)
    with curvature_writer(log) as writer:
        for step, estimate in run.curvature.items():
            writer.write(step, estimate)
        time = "2026-01-03T04:05:06+00:00"
        writer.commit(Change(kind="curvature", time=time, root_before=log.root, details={"rank": 5}))


def _write_next_generation(store: Store, run: Run) -> None:
    log = TrainingLog(store)
    tree = Tree(log.manifest, log.commit.generation + 1)
    writer = GenerationWriter(store, tree)
    writer.write_checkpoint(run.checkpoints[0])
    _append(writer, run)
    details = {"samples": [sample.digest.hex() for sample in run.steps[0].samples[:1]]}
    change = Change(kind="redaction", time="2026-02-03T04:05:06+00:00", root_before=log.root, details=details)
    commit = writer.flush(finished=True, history=(change,))
    write_metadata(store, tree, commit, {})
    write_commit(store, commit, log.manifest_digest)
    store.delete(log.tree.path(""))


def _append(writer: LogWriter | GenerationWriter, run: Run) -> None:
    has_gradients = run.manifest.gradients != "none"
    for number, step in enumerate(run.steps):
        writer.append(step, run.parameters[number + 1], run.gradients[number] if has_gradients else None)
        if number + 1 in run.checkpoints:
            writer.write_checkpoint(run.checkpoints[number + 1])


def expected_of(run: Run) -> dict[str, Any]:
    """What a reader must find: tables as plain numbers, digests as hexadecimal digits.

    Args:
        run: the run that the log holds.

    Returns:
        The document.
    """
    return {
        "tables": _tables(run),
        "parameters_blake3": [_hex(bits) for bits in run.parameters],
        "reconstruction_blake3": [_hex(bits) for bits in _reconstructions(run)],
        "gradient_blake3": [_hex(bits) for bits in _coded_gradients(run)],
        "checkpoints": {
            str(step): {name: _hex(values) for name, values in _arrays(checkpoint).items()}
            for step, checkpoint in run.checkpoints.items()
        },
        **({"curvature": _estimates(run)} if run.curvature else {}),
    }


def _estimates(run: Run) -> dict[str, Any]:
    return {
        str(step): {
            "kind": estimate.kind,
            "rank": estimate.rank,
            "trace": estimate.trace,
            "blake3": {name: _hex(values) for name, values in estimate.arrays.items()},
        }
        for step, estimate in run.curvature.items()
    }


def write_expected(path: Path, document: dict[str, Any]) -> None:
    """Writes the document, one table or list a line.

    Args:
        path: of the file.
        document: what `expected_of` gave.
    """
    lines = [f'"{name}": {json.dumps(value)}' for name, value in document.items() if name != "tables"]
    tables = [f'  "{name}": {json.dumps(rows)}' for name, rows in document["tables"].items()]
    text = ",\n".join(['"tables": {\n' + ",\n".join(tables) + "\n}", *lines])
    path.write_text("{\n" + text + "\n}\n", encoding="utf-8")


def _tables(run: Run) -> dict[str, list[Any]]:
    return {**_sample_tables(run), **_microbatch_tables(run), **_step_tables(run)}


def _sample_tables(run: Run) -> dict[str, list[Any]]:
    samples = list(_rows_of(run).values())
    return {
        "samples/stop": _ends(len(sample.tokens) for sample in samples),
        "samples/digest": [sample.digest.hex() for sample in samples],
        "samples/redacted": [int(sample.is_redacted) for sample in samples],
        "samples/tokens": [int(token) for sample in samples for token in sample.tokens],
        "samples/labels": [int(label) for sample in samples for label in sample.labels],
    }


def _microbatch_tables(run: Run) -> dict[str, list[Any]]:
    microbatches = [m for step in run.steps for m in step.microbatches]
    rows = {digest: row for row, digest in enumerate(_rows_of(run))}
    drawn = [m.rng for m in microbatches if m.rng]
    return {
        "occurrences/sample": [rows[sample.digest] for m in microbatches for sample in m.samples],
        "occurrences/start": [start for m in microbatches for start in m.starts],
        "microbatches/stop": _ends(len(m.samples) for m in microbatches),
        "microbatches/width": [m.width for m in microbatches],
        "microbatches/has_mask": [int(m.has_mask) for m in microbatches],
        "microbatches/denominator": [m.denominator for m in microbatches],
        "microbatches/loss": [m.loss for m in microbatches],
        "microbatches/rng_row": [drawn.index(m.rng) if m.rng else -1 for m in microbatches],
        "rng/states": [state.hex() for state in drawn],
        **({"microbatches/rank": [m.rank for m in microbatches]} if run.manifest.world_size > 1 else {}),
        **(
            {"microbatches/packed": [int(m.packed) for m in microbatches]}
            if any(m.packed for m in microbatches)
            else {}
        ),
    }


def _step_tables(run: Run) -> dict[str, list[Any]]:
    divisor, codec = run.manifest.whole_divisor, run.manifest.updates
    is_lossy = codec != "none" and CODECS[codec].is_lossy
    return {
        "steps/stop": _ends(len(step.microbatches) for step in run.steps),
        "steps/lr": [list(step.lr) for step in run.steps],
        "steps/loss": [sum(m.loss for m in step.microbatches) / divisor for step in run.steps],
        "steps/gradient_norm": [step.gradient_norm for step in run.steps],
        "steps/seconds": [step.seconds for step in run.steps],
        "steps/parameters_blake3": [_hex(bits) for bits in run.parameters[1:]],
        "steps/reconstruction_blake3": [_hex(bits) for bits in _reconstructions(run)] if is_lossy else [],
        "steps/gradient_blake3": [_hex(bits) for bits in _coded_gradients(run)],
        **({"steps/unclipped_norm": [step.unclipped_norm for step in run.steps]} if run.curvature else {}),
        **(
            {"steps/loss_scale": [step.loss_scale for step in run.steps]}
            if any(step.loss_scale != 1 for step in run.steps)
            else {}
        ),
    }


def _rows_of(run: Run) -> dict[bytes, Sample]:
    """Digest -> sample, in the order in which they first occur."""
    return {sample.digest: sample for step in run.steps for sample in step.samples}


def _reconstructions(run: Run) -> Iterator[Bits]:
    """What the updates make of θ[1] to θ[τ], before the correction that a checkpoint brings.

    Yields:
        Bit patterns that are valid until the next ones are asked for.
    """
    if run.manifest.updates == "none":
        return
    before = run.parameters[0].copy()
    for number, after in enumerate(run.parameters[1:], start=1):
        _code(run.manifest.updates, before, after, run.manifest.model.dtype)
        yield before
        if number in run.checkpoints:
            before = after.copy()


def _coded_gradients(run: Run) -> Iterator[Bits]:
    if run.manifest.gradients == "none":
        return
    for gradient in run.gradients:
        zeros = np.zeros_like(gradient)
        _code(run.manifest.gradients, zeros, gradient, run.manifest.model.dtype)
        yield zeros


def _code(codec: CodecName, before: Bits, after: Bits, dtype: str) -> None:
    for span in spans_of(len(before)):
        CODECS[codec].encode(before[span], after[span], dtype)


def _arrays(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    state = checkpoint.optimizer
    parts = {f"optimizer/{name}": values for name, values in {**state.vectors, **state.scalars}.items()}
    generators = np.frombuffer(checkpoint.generators, np.uint8)
    return {"parameters": checkpoint.parameters, "present": state.present, "generators": generators, **parts}


def _ends(sizes: Iterable[int]) -> list[int]:
    ends: list[int] = np.cumsum(list(sizes)).tolist()
    return ends


def _hex(values: NDArray[Any]) -> str:
    return array_digest(values).hex()


def main() -> None:
    """Adds the logs that aren't there."""
    for golden in GOLDEN:
        folder = FOLDER / golden.name
        if not folder.exists():
            write_expected(folder / EXPECTED, expected_of(write_log(folder / LOG, golden)))


if __name__ == "__main__":
    main()
