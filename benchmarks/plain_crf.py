"""The plain recipe for fields: a classifier for the intent, and one conditional random field (CRFsuite) for each intent."""

# mypy: ignore-errors
from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rorqual.teach.rungs.fields import TOKEN, objects, tag, unflatten

COPIED, MOST_INTENTS, FEWEST_OF_AN_INTENT = 0.5, 30, 10
"""A field is copied if more than the share `COPIED` of its values stands in the text. The intent is the field that is not copied, that every
row has, and that has the most values, at most `MOST_INTENTS`. Rarer values of it have no CRF of their own."""


class PlainCrf:
    """One CRF for each intent, and a classifier for each field whose values are not in the text."""

    def __init__(self, prompts: Sequence[str], flat: Sequence[dict], setting: dict[str, float]) -> None:
        paths = [*dict.fromkeys(path for one in flat for path in one)]
        seen = {
            path: [(prompt, one[path]) for prompt, one in zip(prompts, flat, strict=True) if path in one]
            for path in paths
        }
        copied = {
            path
            for path, pairs in seen.items()
            if sum(isinstance(value, str) and value.lower() in prompt.lower() for prompt, value in pairs)
            > COPIED * len(pairs)
        }
        self.containers = set().union(*(objects(unflatten(one)) for one in flat))
        texts = {
            path: [json.dumps(one[path]) if path in one else "" for one in flat] for path in paths if path not in copied
        }
        self.chosen = {path: self.classifier(prompts, values) for path, values in texts.items()}
        self.models = [pickle.dumps(self.chosen)]
        counts = {path: len(set(values)) for path, values in texts.items() if "" not in values}
        intents = [(count, path) for path, count in counts.items() if 1 < count <= MOST_INTENTS]
        self.intent = max(intents)[1] if intents else None
        groups: dict[str, list] = {"": []}
        for place, (prompt, one) in enumerate(zip(prompts, flat, strict=True)):
            row = tag(prompt, {path: value for path, value in one.items() if path in copied})
            groups[""].append(row)
            if self.intent:
                groups.setdefault(texts[self.intent][place], []).append(row)
        kept = {name: rows for name, rows in groups.items() if not name or len(rows) >= FEWEST_OF_AN_INTENT}
        self.taggers = {name: self.tagger(rows, setting) for name, rows in kept.items()}

    def classifier(self, prompts: Sequence[str], values: Sequence[str]) -> Any:
        from sklearn.dummy import DummyClassifier
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        model = LogisticRegression(C=10.0, max_iter=1000) if len(set(values)) > 1 else DummyClassifier()
        return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), model).fit(prompts, values)

    def tagger(self, rows: Sequence[tuple[list[str], list[str]]], setting: dict[str, float]) -> Any:
        import pycrfsuite

        trainer = pycrfsuite.Trainer(verbose=False)
        trainer.set_params(setting | {"max_iterations": 100, "feature.possible_transitions": True})
        for words, tags in rows:
            trainer.append([features(words, place) for place in range(len(words))], tags)
        with tempfile.TemporaryDirectory() as folder:
            trainer.train(f"{folder}/crf")
            model = Path(folder, "crf").read_bytes()
        tagger = pycrfsuite.Tagger()
        tagger.open_inmemory(model)
        self.models.append(model)  # the tagger reads these bytes, and does not keep them
        return tagger

    def predict(self, prompts: Sequence[str]) -> list[str]:
        return [self.answer(prompt) for prompt in prompts]

    def answer(self, prompt: str) -> str:
        texts = {path: str(model.predict([prompt])[0]) for path, model in self.chosen.items()}
        found = {path: json.loads(text) for path, text in texts.items() if text}
        tagger = self.taggers.get(texts[self.intent] if self.intent else "", self.taggers[""])
        matches = [*TOKEN.finditer(prompt)]
        words = [match.group() for match in matches]
        spans: dict[str, list[int]] = {}
        before = "O"
        for kind, match in zip(tagger.tag([features(words, n) for n in range(len(words))]), matches, strict=True):
            name = kind[2:]
            if kind[0] == "B" and name not in spans:
                spans[name] = [match.start(), match.end()]
            elif kind[0] == "I" and before[2:] == name and name in spans:
                spans[name][1] = match.end()
            before = kind
        found |= {tuple(json.loads(name)): prompt[start:end] for name, (start, end) in spans.items()}
        return json.dumps(unflatten(found, self.containers), ensure_ascii=False)


def features(words: Sequence[str], place: int) -> dict[str, Any]:
    """Return the features of a word as in sklearn-crfsuite's tutorial: the word, its ends and its case, and those of its neighbours."""
    word = words[place]
    found = {"bias": 1.0, "lower": word.lower(), "-3": word[-3:], "-2": word[-2:]}
    for name, at in (("", place), ("-1:", place - 1), ("+1:", place + 1)):
        if 0 <= at < len(words):
            one = words[at]
            found |= {
                f"{name}lower": one.lower(),
                f"{name}upper": one.isupper(),
                f"{name}title": one.istitle(),
                f"{name}digit": one.isdigit(),
            }
        else:
            found[f"{name}edge"] = True
    return found
