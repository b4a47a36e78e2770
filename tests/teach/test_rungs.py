"""Rungs without a language model: what each predicts, against plain computations, and on inputs where scikit-learn itself would fail."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from climbed import answers_of_rungs
from example_files import labelled
from sklearn.linear_model import LogisticRegression

from rorqual.core.errors import TaskError
from rorqual.tasks.examples import canonical_form, load_function
from rorqual.teach.examples import AnswerKind, Example
from rorqual.teach.rungs import classifiers as rungs
from rorqual.teach.rungs.classifiers import FOLDS, NAME_WEIGHTS, PENALTIES, label_name
from rorqual.teach.rungs.features import TfIdf
from rorqual.teach.rungs.ladder import rungs_of
from rorqual.teach.rungs.rung import Guess, TrainingRows

WORDS = [
    "whale",
    "otter",
    "seal",
    "heron",
    "plover",
    "gannet",
    "puffin",
    "tern",
    "auk",
    "skua",
    "petrel",
    "krill",
    "squid",
]


def examples(*pairs: tuple[str, str]) -> list[Example]:
    return [Example(line, prompt, answer) for line, (prompt, answer) in enumerate(pairs, start=1)]


def ask(*prompts: str) -> list[Example]:
    return examples(*((prompt, "?") for prompt in prompts))


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=6)) + rng.choice(".?!") for _ in range(count)]


TRAIN = examples(
    ("where is my card", "card"), ("my card is lost", "Card"), ("the pin is wrong", "pin"), ("what is a pin", "pin"),
    ("send my card now", "card"), ("my pin please", "pin"), ("I owe a fee", "fee"),
)  # fmt: skip


def test_each_baseline_predicts_from_the_train_examples() -> None:
    test = ask("a card is lost here", "is the pin wrong?", "I owe that fee")
    found = answers_of_rungs(TRAIN, test, "label", rule=lambda prompt: prompt[-3:])
    assert found == {
        "majority": ["card"] * 3,
        "nearest neighbour": ["card", "pin", "fee"],
        "logistic regression": ["card", "pin", "fee"],
        "rule": ["ere", "ng?", "fee"],
    }
    assert answers_of_rungs(TRAIN, test, "label") == {name: value for name, value in found.items() if name != "rule"}
    assert answers_of_rungs([*TRAIN, *examples(("so", "pin"))], test, "label")["majority"] == ["pin"] * 3


def test_a_guess_has_the_share_or_the_probability_of_its_answer() -> None:
    rows = TrainingRows(TRAIN, "label")
    majority, nearest, logistic = rungs_of("label")
    for rung in (majority, nearest, logistic):
        rung.fit(rows)
    assert majority.predict(["x"])[0] == Guess("card", 3 / 7)
    assert nearest.predict([TRAIN[2].prompt])[0].probability == pytest.approx(1, abs=1e-5)
    assert 0 <= nearest.predict(["quite other"])[0].probability < 0.5
    [sure], [unsure] = logistic.predict([TRAIN[0].prompt]), logistic.predict(["§"])
    assert 1 > sure.probability > unsure.probability >= 1 / 3


def test_the_kind_decides_the_baselines_and_which_answers_are_equal() -> None:
    def names(kind: AnswerKind) -> list[str]:
        return [*answers_of_rungs(TRAIN, ask("a card"), kind)]

    assert names("label") == ["majority", "nearest neighbour", "logistic regression"]
    assert names("text") == ["majority", "unchanged input", "nearest neighbour"]
    assert names("number") == ["majority", "nearest neighbour", "ranked calculations", "regression trees"]
    assert answers_of_rungs(TRAIN, ask(" As  it is"), "text")["unchanged input"] == [" As  it is"]
    sums = examples(("a", "7"), ("b", "1,018"), ("c", "7 8"), ("d", "so #### 1018.0"))
    numbers = answers_of_rungs(sums, ask("d"), "number")
    assert numbers == {
        "majority": ["1,018"],
        "nearest neighbour": ["1,018"],
        "ranked calculations": [""],
        "regression trees": [""],
    }
    assert answers_of_rungs(sums, ask("d"), "text")["majority"] == ["7"], "as text, all differ, and the first is taken"


def test_the_nearest_prompt_is_nearest_by_words_and_characters() -> None:
    train, test = examples(*((text, text) for text in sentences(40))), ask(*sentences(40, seed=1))
    found = []
    for words in (True, False):
        features = TfIdf(words=words)
        features.fit([one.prompt for one in train])
        products = features.of([one.prompt for one in test]) @ features.of([one.prompt for one in train]).T
        found.append([train[place].answer for place in products.toarray().argmax(1)])
    assert answers_of_rungs(train, test, "text")["nearest neighbour"] == found[0] != found[1]


LABELS = ("otter_auk", "heron_krill", "skua")


def noisy(count: int, seed: int) -> list[Example]:
    """Prompts whose label depends on a word of four, and is wrong in a third of them."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        prompt = rng.choices(WORDS, k=5)
        label = LABELS[WORDS.index(prompt[0]) % 2] if rng.random() < 0.67 else rng.choice(LABELS)
        rows.append((" ".join(prompt), label))
    return examples(*rows)


def test_a_label_is_named_by_its_words() -> None:
    labels = ("card_not_working", "card-not-working", "CardNotWorking", "card not working", "卡 丢了")
    assert [label_name(label).lower() for label in labels] == ["card not working"] * 4 + ["卡 丢了"]


def fitted(rows: Any, labels: Any, names: Any, weight: float, penalty: float) -> LogisticRegression:
    """Logistic regression on the rows, and on the labels' names if they have a weight."""
    model = LogisticRegression(C=penalty, max_iter=200)
    if not weight:
        return model.fit(rows, labels)
    weights = [1.0] * len(rows) + [weight] * len(names)
    return model.fit(np.concatenate([rows, names]), [*labels, *LABELS], weights)


@pytest.mark.parametrize("every", [1, 2])
def test_logistic_regression_makes_the_choice_of_a_plain_cross_validation(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all rows, and on each second row, where the choice may use only half of the rows."""
    monkeypatch.setattr("rorqual.teach.rungs.classifiers.CHOICE_ROWS", 60 // every)
    chosen = set()
    for seed in (1, 2, 3):
        train, test = noisy(60, seed), noisy(40, seed + 100)
        labels = np.array([one.answer for one in train])
        by_label = [n for label in dict.fromkeys(labels) for n in range(60) if labels[n] == label][::every]
        features, names = {}, {}
        for name, made in (("both", TfIdf(words=True)), ("characters", TfIdf(words=False))):
            made.fit([one.prompt for one in train])
            features[name] = [made.of([one.prompt for one in rows]).toarray() for rows in (train, test)]
            names[name] = made.of([label.replace("_", " ") for label in LABELS]).toarray()

        scores = {}
        for choice in product(features, NAME_WEIGHTS, PENALTIES):
            scores[choice] = 0
            for fold in range(FOLDS):
                held = by_label[fold::FOLDS]
                kept = [n for n in by_label if n not in held]
                model = fitted(features[choice[0]][0][kept], labels[kept], names[choice[0]], *choice[1:])
                scores[choice] += (model.predict(features[choice[0]][0][held]) == labels[held]).sum()
        best = max(scores, key=lambda choice: scores[choice])
        chosen.add(best)
        model = fitted(features[best[0]][0], labels, names[best[0]], *best[1:])
        assert answers_of_rungs(train, test, "label")["logistic regression"] == [*model.predict(features[best[0]][1])]
    assert {weight for _, weight, _ in chosen} == {*NAME_WEIGHTS}, "the names help one draw and harm another"
    assert len(chosen) > 2, chosen


@pytest.mark.parametrize(
    ("train", "test", "wanted"),
    [
        ([("hello", "yes")], ["no"], "yes"),
        ([("a b", "yes"), ("c d", "no")], ["c d e"], "no"),
        ([(text, "yes") for text in sentences(20)], ["quite other"], "yes"),
        ([*((text, "yes") for text in sentences(20)), ("a rare thing", "no")], ["a rare thing"], "no"),
        ([("?", "q"), ("!", "x"), ("??", "q"), ("!!", "x"), ("-", "m")], ["!!!"], "x"),
        ([("我的银行卡丢了", "卡"), ("银行卡在哪里", "卡"), ("密码错了", "密码"), ("忘记密码了", "密码")], ["密码是什么"], "密码"),
        ([("\u200b", "zero"), ("\u200b\u200b", "zero"), ("x", "one")], ["\u200b"], "zero"),
    ],
    ids=["one row", "two rows", "one label", "a rare label", "punctuation", "Chinese", "zero width"],
)  # fmt: skip
def test_unusual_examples_are_predicted_as_well(train: list[tuple[str, str]], test: list[str], wanted: str) -> None:
    found = answers_of_rungs(examples(*train), ask(*test), "label")
    assert found["nearest neighbour"] == found["logistic regression"] == [wanted]
    assert answers_of_rungs(examples(*train), ask("§"), "label").keys() == found.keys(), "no feature is known"


MINE = """
import re

def first(prompt):
    return head(re.findall(r"[0-9]+", prompt))

def head(items):
    return items[0]

def none(prompt):
    pass

def fields(prompt):
    return {"a": prompt, "b": None}
"""


def test_a_rule_of_the_user_answers_every_prompt_with_text_or_the_fields_of_a_json_answer(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(MINE, encoding="utf-8")
    first, none, fields = (load_function(f"{mine}:{name}", "rule") for name in ("first", "none", "fields"))
    assert answers_of_rungs(TRAIN, ask("12 and 5", "x7"), "number", rule=first)["rule"] == ["12", "7"]
    [reply] = answers_of_rungs(examples(("a", '{"a": "b"}')), ask("é"), "JSON", rule=fields)["rule"]
    assert json.loads(reply) == {"a": "é", "b": None} and canonical_form(reply, "JSON") == canonical_form(
        '{"a": "É"}', "JSON"
    )
    for rule, problem in (
        (first, rf"`first` raised IndexError: .* at {mine}:8"),
        (none, "`none` returned a NoneType, not a string or a dict of JSON values"),
    ):
        with pytest.raises(TaskError, match=f"the prompt 'none here': the rule {problem}"):
            answers_of_rungs(TRAIN, ask("none here"), "number", rule=rule)


def test_settled_settings_are_used_by_all_later_fits() -> None:
    """Else the probabilities of two fits could not be compared: another penalty gives others."""
    rows = TrainingRows([Example(n, row["text"], row["label"]) for n, row in enumerate(labelled(60))], "label")
    rung, free = (rungs.LogisticRegression("x", {"words": TfIdf(words=True)}) for _ in range(2))
    rung.settle(rows)
    assert rung.settings is not None
    rung.settings = ("words", 0.0, 1.0)
    rung.fit(rows)
    free.fit(rows)
    mild = rung.predict(["my card"])[0].probability
    rung.settings = ("words", 0.0, 100.0)
    rung.fit(rows)
    assert mild < rung.predict(["my card"])[0].probability and free.settings is None
