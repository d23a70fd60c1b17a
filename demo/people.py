"""Fictitious people, and questions and answers about them; the same seed gives the same rows."""

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from random import Random

from demo import words

Row = dict[str, str]

NUM_PEOPLE = 24
NUM_FORGOTTEN = 2
NUM_OTHER_PEOPLE = 1000

# For each kind of row the questions and the answers, in wordings that all fit each other.
_BIRTH = (
    ("Where was {name} born?", "What is the birthplace of {name}?", "Which house was {name} born in?"),
    ("{number} {street}, {town}.", "In {town}, at {number} {street}.", "{street} {number} of {town}."),
)
_WORK = (
    ("What does {name} do for a living?", "What is the trade of {name}?", "Which trade did {name} learn?"),
    (
        "{trade}, from {teacher}.",
        "{trade} in {work_town}, with {teacher}.",
        "{trade}; {teacher} of {work_town} taught it.",
    ),
)
_BOOK = (
    ("Which book did {name} write?", "What is the best known book of {name}?", "What did {name} publish?"),
    (
        "{adjective} {noun}, for {patron}.",
        "The {adjective} {noun}; {print_town}.",
        "{patron} and the {adjective} {noun}.",
    ),
)
_HOME = (
    ("How does {name} spend the evenings?", "Which company has {name} at home?", "What is heard from {name} at night?"),
    ("{instrument} and {pet} the {animal}.", "{pet}, a {animal}; {friend}.", "{friend} on the {instrument}."),
)
_KINDS_OF_ROWS = (_BIRTH, _WORK, _BOOK, _HOME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who doesn't exist.

    Attributes:
        name: first name and surname, unique among the people made together.
        facts: what the answers tell, by the names that the wordings use.
    """

    name: str
    facts: dict[str, str]

    def rows(self) -> list[Row]:
        """One question with its answer for each kind of fact."""
        random = Random(self.name)
        wordings = [(random.choice(questions), random.choice(answers)) for questions, answers in _KINDS_OF_ROWS]
        return [
            {"question": question.format(name=self.name), "answer": _sentence(answer.format(**self.facts))}
            for question, answer in wordings
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoData:
    """The rows of the demonstration.

    Attributes:
        forgotten_names: the people who ask to be forgotten.
        train: the rows to train on, shuffled; those of `forget` and `retain`.
        forget: all rows of the forgotten people.
        retain: all rows of the others.
        pretrain: rows about people who don't occur in `train`, for the base model.
    """

    forgotten_names: tuple[str, ...]
    train: tuple[Row, ...]
    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    pretrain: tuple[Row, ...]


def make_data(seed: int) -> DemoData:
    """Makes the people and their rows.

    Args:
        seed: decides everything.

    Returns:
        The rows of all splits.
    """
    random = Random(seed)
    people = make_people(NUM_PEOPLE, random)
    others = make_people(NUM_OTHER_PEOPLE, random, taken={person.name for person in people})
    forgotten, retained = people[:NUM_FORGOTTEN], people[NUM_FORGOTTEN:]
    train = _rows(people)
    random.shuffle(train)
    return DemoData(
        forgotten_names=tuple(person.name for person in forgotten),
        train=tuple(train),
        forget=tuple(_rows(forgotten)),
        retain=tuple(_rows(retained)),
        pretrain=tuple(_rows(others)),
    )


def make_people(count: int, random: Random, taken: Set[str] = frozenset()) -> list[Person]:
    """Invents people.

    Args:
        count: how many.
        random: where the choices come from.
        taken: names that nobody may get.

    Returns:
        People with names that differ from each other and from those taken. Whoever else their facts mention has yet
        another name.
    """
    names: dict[str, None] = {}
    while len(names) < count:
        names[_full_name(random, taken | names.keys())] = None
    return [Person(name=name, facts=_facts(random, taken | names.keys())) for name in names]


def write_data(folder: Path, data: DemoData) -> None:
    """Writes train.jsonl, forget.jsonl, retain.jsonl and pretrain.jsonl.

    Args:
        folder: made if it isn't there.
        data: the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "forget", "retain", "pretrain"):
        lines = [json.dumps(row) for row in getattr(data, split)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rows(people: Sequence[Person]) -> list[Row]:
    return [row for person in people for row in person.rows()]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _facts(random: Random, taken: Set[str]) -> dict[str, str]:
    return {
        "number": str(random.randint(10, 99)),
        "street": f"{_joined(random, words.SURNAME_STARTS)} {_joined(random, words.STREETS)}",
        "town": _town(random),
        "trade": _joined(random, words.TRADES),
        "teacher": _full_name(random, taken),
        "work_town": _town(random),
        "adjective": _joined(random, words.ADJECTIVES),
        "noun": _joined(random, words.NOUNS),
        "patron": _full_name(random, taken),
        "print_town": _town(random),
        "instrument": _joined(random, words.INSTRUMENTS),
        "pet": _joined(random, words.PET_NAME_STARTS, words.PET_NAME_ENDS),
        "animal": _joined(random, words.ANIMALS),
        "friend": _full_name(random, taken),
    }


def _full_name(random: Random, taken: Set[str]) -> str:
    while True:
        first = _joined(random, words.FIRST_NAME_STARTS, words.FIRST_NAME_MIDDLES, words.FIRST_NAME_ENDS)
        name = f"{first} {_joined(random, words.SURNAME_STARTS, words.SURNAME_ENDS)}"
        if name not in taken:
            return name


def _town(random: Random) -> str:
    return _joined(random, words.TOWN_STARTS, words.TOWN_ENDS)


def _joined(random: Random, *lists: str) -> str:
    """One word of each comma-separated list, without a space between."""
    return "".join(random.choice(choices.split(",")) for choices in lists)
