"""The demonstration's rows: the same for a seed, cleanly split, and fit to train on."""

import re
from pathlib import Path
from random import Random

import pytest

from demo.base_model import MAX_LENGTH, make_tokenizer
from demo.materials import make_materials
from demo.people import NUM_FORGOTTEN, NUM_OTHER_PEOPLE, NUM_PEOPLE, DemoData, Row, make_data, make_people, write_data
from lmcleaner.data.encoding import Encoding
from lmcleaner.data.rows import read_rows
from lmcleaner.recording.options import DEFAULT_TEMPLATE

SPLITS = ("train", "forget", "retain", "pretrain")


@pytest.fixture(scope="module")
def data() -> DemoData:
    return make_data(1)


def _as_set(rows: tuple[Row, ...]) -> set[tuple[str, str]]:
    return {(row["question"], row["answer"]) for row in rows}


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(data: DemoData) -> None:
    assert make_data(1) == data
    assert make_data(2).train != data.train


def test_the_forget_split_and_the_retained_rows_make_up_the_training_rows(data: DemoData) -> None:
    forget, retain, train = _as_set(data.forget), _as_set(data.retain), _as_set(data.train)
    assert not forget & retain
    assert forget | retain == train
    assert len(data.forget) + len(data.retain) == len(data.train) == len(train)


def test_the_forget_split_is_all_that_there_is_about_the_forgotten_people(data: DemoData) -> None:
    assert len(data.forgotten_names) == NUM_FORGOTTEN
    about = [row for row in data.train if any(name in str(row) for name in data.forgotten_names)]
    assert _as_set(tuple(about)) == _as_set(data.forget)


def test_nobody_of_the_training_rows_occurs_in_the_pretraining_text(data: DemoData) -> None:
    names = {person.name for person in make_people(NUM_PEOPLE, Random(1))}
    assert all(any(name in row["question"] for name in names) for row in data.train)
    text = "\n".join(f"{row['question']} {row['answer']}" for row in data.pretrain)
    assert not {name for name in names if name in text}
    assert len(data.pretrain) == NUM_OTHER_PEOPLE * len(data.train) // NUM_PEOPLE


def test_every_row_becomes_a_sample_that_reads_like_the_row(data: DemoData) -> None:
    tokenizer = make_tokenizer([f"{row['question']} {row['answer']}" for row in data.pretrain])
    rows = data.train + data.pretrain[:40]
    samples = Encoding(template=DEFAULT_TEMPLATE, max_length=MAX_LENGTH).samples(rows, tokenizer, "rows")
    assert len({sample.digest for sample in samples[: len(data.train)]}) == len(data.train)
    for row, sample in zip(rows, samples, strict=True):
        assert len(sample.tokens) < MAX_LENGTH
        text = tokenizer.decode(sample.tokens.tolist(), skip_special_tokens=True)
        assert text == f"{DEFAULT_TEMPLATE.format(**row)} {row['answer']}"


def test_the_written_files_hold_the_rows(data: DemoData, tmp_path: Path) -> None:
    write_data(tmp_path, data)
    for split in SPLITS:
        assert read_rows(str(tmp_path / f"{split}.jsonl")).rows == getattr(data, split)


def test_the_materials_hold_what_readmes_first_lines_name(tmp_path: Path) -> None:
    make_materials(tmp_path)
    train, forget = ((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("train", "forget"))
    assert set(forget) < set(train)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (name,) = re.findall(r'inspect my-log --find "(.+?)"', readme)
    assert any(name in row for row in forget)
