"""What comes from a model: each fast path against a slow one that says what is meant."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmcleaner.data.encoding import Encoding
from lmcleaner.data.rows import RowSource, read_rows
from lmcleaner.evaluation.answers import answer_probabilities, mean_divergence
from lmcleaner.evaluation.evaluate import evaluate
from lmcleaner.evaluation.generation import generate_answers, true_answers
from lmcleaner.evaluation.metrics import possible_metrics
from lmcleaner.evaluation.parts import Parts, part_rows
from lmcleaner.evaluation.passes import Wanted, score_rows
from lmcleaner.evaluation.scores import Part
from lmcleaner.formats.errors import UsageError
from lmcleaner.formats.samples import IGNORED_LABEL, Sample
from lmcleaner.training.models import load_model, load_tokenizer
from tiny_runs import Recording, TinyRun, rows, write_rows

ENCODING = Encoding(template="Question: {question} Answer:", max_length=64)


@pytest.fixture(scope="module")
def trained(adamw_run: TinyRun) -> Any:
    return load_model(str(adamw_run.trained), torch.float32).eval()


@pytest.fixture(scope="module")
def base(base_model: Path) -> Any:
    return load_model(str(base_model), torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(base_model: Path) -> Any:
    return load_tokenizer(str(base_model))


@pytest.fixture(scope="module")
def samples(tokenizer: Any) -> list[Sample]:
    return ENCODING.samples(rows(12), tokenizer, "rows")


def _slow_log_probabilities(model: Any, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one row alone, in float64: `[target, vocab]` and the tokens that came."""
    tokens = torch.tensor(sample.tokens.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[0, :-1].double()
    labels = torch.tensor(sample.labels[1:].astype(np.int64))
    counted = labels != IGNORED_LABEL
    return torch.log_softmax(logits, -1)[counted], labels[counted]


def test_loss_and_memorization_and_membership_of_rows_in_batches(trained: Any, samples: list[Sample]) -> None:
    found = score_rows({"it": trained}, samples, Wanted(tokens=True))["it"]
    for row, sample in enumerate(samples):
        log_probabilities, labels = _slow_log_probabilities(trained, sample)
        chosen = log_probabilities[range(len(labels)), labels]
        assert found["loss"][row] == pytest.approx(-float(chosen.mean()), rel=1e-5)
        assert found["probability"][row] == pytest.approx(float(chosen.mean().exp()), rel=1e-5)
        inside = slice(0, len(labels) - 1)  # without the end token
        lowest = max(1, int((len(labels) - 1) * 0.4))
        assert found["mia_min_k"][row] == pytest.approx(-float(chosen[inside].sort()[0][:lowest].mean()), rel=1e-5)
        mean = (log_probabilities.exp() * log_probabilities).sum(-1)
        deviation = (log_probabilities.exp() * (log_probabilities - mean[:, None]) ** 2).sum(-1).sqrt()
        normalised = ((chosen - mean) / deviation)[inside].sort()[0]
        assert found["mia_min_k_plus_plus"][row] == pytest.approx(-float(normalised[:lowest].mean()), rel=1e-3)
        hits = [bool(hit) for hit in (log_probabilities.argmax(-1) == labels)[inside]]
        assert found["exact_memorization"][row] == pytest.approx(sum(hits) / len(hits))
        suffix = next((k for k in range(len(hits)) if all(hits[k:])), len(hits) - 1)
        assert found["extraction_strength"][row] == pytest.approx(1 - suffix / len(hits))


def test_the_gradient_norm_is_the_mean_over_the_tensors(trained: Any, samples: list[Sample]) -> None:
    found = score_rows({"it": trained}, samples[:3], Wanted(tokens=True, gradients=True))["it"]
    for row, sample in enumerate(samples[:3]):
        tokens = torch.tensor(sample.tokens.astype(np.int64))[None]
        labels = torch.tensor(sample.labels.astype(np.int64))[None]
        labels[0, -1] = IGNORED_LABEL  # the end token
        trained.zero_grad()
        trained(input_ids=tokens, labels=labels).loss.backward()
        norms = [parameter.grad.norm() for parameter in trained.parameters()]
        assert found["mia_gradnorm"][row] == pytest.approx(float(torch.stack(norms).mean()), rel=1e-4)
        trained.zero_grad()
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_divergence_and_agreement_are_those_from_gold(trained: Any, base: Any, samples: list[Sample]) -> None:
    found = score_rows({"gold": base, "it": trained}, samples, Wanted(gold="gold"))
    assert found["gold"]["kl"].tolist() == [0.0] * len(samples)
    assert found["gold"]["agreement"].tolist() == [1.0] * len(samples)
    for row, sample in enumerate(samples):
        (wanted, _), (said, _) = _slow_log_probabilities(base, sample), _slow_log_probabilities(trained, sample)
        assert found["it"]["kl"][row] == pytest.approx(float((wanted.exp() * (wanted - said)).sum(-1).mean()), rel=1e-4)
        agree = (wanted.argmax(-1) == said.argmax(-1)).double().mean()
        assert found["it"]["agreement"][row] == pytest.approx(float(agree))
    assert mean_divergence(base, trained, samples) == pytest.approx(found["it"]["kl"].mean())
    assert answer_probabilities(trained, samples) == pytest.approx(found["it"]["probability"])


def _slow_answer(model: Any, tokenizer: Any, prompt: list[int], limit: int) -> str:
    """One row, one token at a time, without padding or a cache."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + limit:
        with torch.no_grad():
            best = int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        tokens.append(best)
    return str(tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True)).strip()


def test_generation_in_batches_is_that_of_each_row_alone(trained: Any, tokenizer: Any, samples: list[Sample]) -> None:
    said = generate_answers(trained, samples, tokenizer, 6)
    for sample, answer in zip(samples, said, strict=True):
        prompt = sample.tokens[sample.labels == IGNORED_LABEL].tolist()
        assert answer == _slow_answer(trained, tokenizer, prompt, 6)
    assert any(said)


def test_a_text_is_continued_from_its_middle(trained: Any, tokenizer: Any) -> None:
    text = ENCODING.samples([{"text": "ada lives in the north"}], tokenizer, "rows")
    assert true_answers(text, tokenizer) == ["in the north"]
    said = generate_answers(trained, text, tokenizer, 4)
    assert said == [_slow_answer(trained, tokenizer, text[0].tokens[:3].tolist(), 4)]


def test_an_answer_ends_where_the_context_does(trained: Any, tokenizer: Any) -> None:
    long = ENCODING.samples([{"question": "ada " * 50, "answer": "ben"}], tokenizer, "rows")
    assert len(generate_answers(trained, long, tokenizer, 200)[0].split()) == 64 - 53


def _with_others(tmp_path: Path, name: str, count: int, seed: int) -> RowSource:
    found: list[dict[str, Any]] = [
        {**row, "paraphrased_answer": "ben lives", "perturbed_answer": ["the mill", "a river in the south"]}
        for row in rows(count, seed)
    ]
    return read_rows(str(write_rows(tmp_path / f"{name}.jsonl", found)))


@pytest.fixture
def parts(tmp_path: Path, tokenizer: Any) -> Parts:
    def encode(source: RowSource) -> list[Sample]:
        return ENCODING.samples(source.rows, tokenizer, source.source)

    holdout = read_rows(str(write_rows(tmp_path / "holdout.jsonl", rows(4, seed=9))))
    return {
        Part.FORGET: part_rows(_with_others(tmp_path, "forget", 5, 0), encode),
        Part.RETAIN: part_rows(_with_others(tmp_path, "retain", 6, 1), encode),
        Part.HOLDOUT: part_rows(holdout, encode),
    }


def test_every_answer_goes_through_each_model_once(trained: Any, base: Any, tokenizer: Any, parts: Parts) -> None:
    seen: dict[str, list[tuple[int, ...]]] = {"gold": [], "it": []}
    models, progress = {"gold": base, "it": trained}, Recording()

    def count(name: str) -> Any:
        def hook(module: Any, args: Any, given: dict[str, Any]) -> None:
            if not given.get("use_cache"):  # those of the generation come with a cache
                pairs = zip(given["input_ids"], given["attention_mask"], strict=True)
                seen[name] += [tuple(tokens[mask.bool()].tolist()) for tokens, mask in pairs]

        return hook

    handles = [model.register_forward_pre_hook(count(name), with_kwargs=True) for name, model in models.items()]
    found = evaluate(models, tokenizer, parts, gold="gold", max_new_tokens=4, progress=progress)
    for handle in handles:
        handle.remove()
    expected = [
        tuple(sample.tokens.tolist())
        for rows_ in parts.values()
        for sample in (*rows_.samples, *rows_.paraphrases, *(wrong for answers in rows_.wrong for wrong in answers))
    ]
    assert sorted(seen["it"]) == sorted(seen["gold"]) == sorted(expected)
    names = {metric.name for metric in possible_metrics(found["it"], found["gold"])}
    assert len(names) == 20  # all but those of real authors and world facts, and with them model utility
    assert any(line.startswith("scoring forget: 5") for line in progress.lines)  # one row a batch, for its gradient
    assert found["gold"][Part.FORGET]["mia_reference"].tolist() == [0.0] * 5
    assert found["it"][Part.FORGET]["wrong_loss"].shape == (5, 2)


def test_other_answers_are_scored_as_rows_of_their_own(trained: Any, tokenizer: Any, parts: Parts) -> None:
    found = evaluate({"it": trained}, tokenizer, {Part.RETAIN: parts[Part.RETAIN]}, max_new_tokens=1)["it"]
    columns = found[Part.RETAIN]
    for row, question in enumerate(rows(6, seed=1)):
        for number, answer in enumerate(["the mill", "a river in the south"]):
            sample = ENCODING.samples([question | {"answer": answer}], tokenizer, "rows")
            expected = answer_probabilities(trained, sample)[0]
            assert columns["wrong_probability"][row, number] == pytest.approx(expected, rel=1e-5)
    assert "mia_gradnorm" not in columns
    assert "kl" not in columns


def test_rows_without_other_answers_have_none(tokenizer: Any, tmp_path: Path) -> None:
    source = read_rows(str(write_rows(tmp_path / "rows.jsonl", rows(2))))
    found = part_rows(source, lambda it: ENCODING.samples(it.rows, tokenizer, it.source))
    assert (len(found.samples), found.paraphrases, found.wrong) == (2, (), ())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [([["a"], ["a", "b"]], r"the same number for every row, found \[1, 2\]"), (["a", "b"], "expected a list of texts")],
)
def test_perturbed_answers_of_another_shape_are_refused(wrong: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(row | {"perturbed_answer": it}) + "\n" for row, it in zip(rows(2), wrong, strict=True))
    )
    with pytest.raises(UsageError, match=message):
        part_rows(read_rows(str(path)), lambda source: [])
