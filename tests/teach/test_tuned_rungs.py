"""Rungs with a fine-tuned encoder: what their training changes, what they learn that frozen embeddings cannot show, and their probabilities."""

from __future__ import annotations

import json
import random
from itertools import pairwise, product

import pytest
import torch
from bert_folder import WORDS, write_bert

from rorqual.teach.encoder import Encoder, load_encoder
from rorqual.teach.examples import AnswerKind, Example
from rorqual.teach.rungs.classifiers import LogisticRegression
from rorqual.teach.rungs.crf import best_path, log_partition, path_score
from rorqual.teach.rungs.features import Embeddings
from rorqual.teach.rungs.rung import Rung, TrainingRows
from rorqual.teach.rungs.tuned_fields import TunedFields
from rorqual.teach.rungs.tuned_labels import TunedLabels
from rorqual.teach.rungs.tuning import TunedRung, token_places


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(str(write_bert(tmp_path_factory.mktemp("bert"))))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """High learning rates, for an encoder with random weights."""
    for name, value in (("RATE", 3e-3), ("HEAD_RATE", 1e-2), ("EPOCHS", 30)):
        monkeypatch.setattr(f"rorqual.teach.rungs.tuning.{name}", value)


def ordered(count: int, seed: int, kind: AnswerKind) -> list[Example]:
    """Labels that depend on the order of the first two words, and fields whose key depends on a word far before the value."""
    rng, rows = random.Random(seed), []
    for line in range(count):
        marks, filler = rng.sample(["w1", "w2"], 2), rng.choices(WORDS[10:], k=3)
        word = rng.choice(WORDS[5:9])
        first = marks[0] == "w1"
        answer = ("yes" if first else "no") if kind == "label" else json.dumps({"a" if first else "b": word})
        rows.append(Example(line, " ".join([*marks[: 2 if kind == "label" else 1], *filler, word]), answer))
    return rows


def share_right(rung: Rung, kind: AnswerKind) -> float:
    rung.fit(TrainingRows(ordered(150, 0, kind), kind))
    test = ordered(60, 1, kind)
    guesses = rung.predict([one.prompt for one in test])
    assert guesses == [rung.predict([one.prompt])[0] for one in test], "no guess depends on another prompt"
    assert all(0 <= guess.probability <= 1 + 1e-6 for guess in guesses)
    return sum(guess.answer == one.answer for guess, one in zip(guesses, test, strict=True)) / len(test)


@pytest.mark.parametrize(("kind", "rung"), [("label", TunedLabels), ("JSON", TunedFields)])
def test_a_tuned_encoder_learns_what_a_mean_of_frozen_states_or_the_words_nearby_do_not_show(
    kind: AnswerKind, rung: type[TunedRung], encoder: Encoder, fast: None
) -> None:
    tuned = rung(encoder)
    assert share_right(tuned, kind) >= 0.9
    if kind == "label":
        assert share_right(LogisticRegression("l", {"e": Embeddings(encoder)}), kind) < 0.8
    for name, weight in tuned.encoder.weights.items():
        moved = not torch.equal(weight, encoder.weights[name])
        assert moved == name.startswith("encoder.layer.") or name.endswith("key.bias"), (
            f"{name}: only the layers are trained"
        )


def test_the_seed_decides_the_bits(encoder: Encoder) -> None:
    rows = TrainingRows(ordered(40, 0, "label"), "label")
    made = []
    for seed in (0, 0, 1):
        made.append(TunedLabels(encoder, seed))
        made[-1].fit(rows)
    made[1].fit(rows)
    first, again, other = (rung.predict(rows.prompts) for rung in made)
    assert first == again != other, "a second fit starts from the pretrained encoder"


def test_the_conditional_random_field_is_that_of_all_sequences() -> None:
    torch.manual_seed(0)
    texts, first, following = [torch.randn(n, 3) for n in (4, 1, 3)], torch.randn(3), torch.randn(3, 3)
    for emissions, found in zip(texts, log_partition(texts, first, following), strict=True):
        paths = [torch.tensor(tags) for tags in product(range(3), repeat=len(emissions))]
        scores = []
        for tags in paths:
            pairs = pairwise(tags)
            scores.append(
                first[tags[0]]
                + sum(following[a, b] for a, b in pairs)
                + sum(emissions[n, t] for n, t in enumerate(tags))
            )
            assert path_score(emissions, tags, first, following) == pytest.approx(float(scores[-1]), abs=1e-5)
        assert found == pytest.approx(float(torch.stack(scores).logsumexp(0)), abs=1e-5)
        assert best_path(emissions, first, following) == paths[int(torch.stack(scores).argmax())].tolist()


def test_a_word_is_at_its_first_token(encoder: Encoder) -> None:
    encoding = encoder.tokenizer.encode("w1, w2")
    assert token_places(encoding, [0, 1, 2, 4, 3]) == [1, 1, 2, 3, 0], "the space has no token"
