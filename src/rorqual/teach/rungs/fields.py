"""A rung for JSON answers: values that stand in the prompt are found by a conditional random field, all others are chosen."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rorqual.core.extras import require_extra
from rorqual.teach.examples import Example
from rorqual.teach.rungs.classifiers import LogisticRegression
from rorqual.teach.rungs.features import Features, TfIdf
from rorqual.teach.rungs.rung import Guess, Rung, TrainingRows

TOKEN = re.compile(r"\w+|[^\w\s]")
COPIED = 0.8
"""A field is copied if at least the share `COPIED` of its values stands in the prompt."""
FEWEST = 10
"""A value of the leading field with fewer training examples has no conditional random field of its own."""
MOST_VALUES = 30
"""Maximum number of values of the leading field."""
CRF = {"c1": 0.1, "c2": 0.01, "max_iterations": 100, "feature.possible_transitions": True}
Path_ = tuple[str, ...]


class FieldLayout:
    """The fields of JSON answers, by their path of keys.

    `copied` are the fields whose values stand in the prompt, `chosen` all others. `leading` is the chosen field that every answer has
    with 2 to `MOST_VALUES` values, the most of all, or None. The objects at `containers` are in every answer.
    """

    def __init__(self, rows: TrainingRows) -> None:
        values, flat = [json.loads(one.answer) for one in rows.examples], flat_answers(rows)
        in_all = set[Path_](objects(values[0])).intersection(*map(objects, values))
        self.containers = [path for path in objects(values[0]) if path in in_all]
        self.paths = [*dict.fromkeys(path for one in flat for path in one)]
        self.copied = [path for path in self.paths if _share_in_prompt(path, rows.examples, flat) >= COPIED]
        self.chosen = [path for path in self.paths if path not in self.copied]
        leading = [
            (count, path)
            for path in self.chosen
            if all(path in one for one in flat)
            and 2 <= (count := len({as_text(one[path]) for one in flat})) <= MOST_VALUES
        ]
        self.leading = max(leading)[1] if leading else None

    def only_copied(self, fields: Mapping[Path_, Any]) -> dict[Path_, Any]:
        """Return the copied ones of the fields of an answer."""
        return {path: value for path, value in fields.items() if path in self.copied}

    def answer(self, fields: Mapping[Path_, Any]) -> str:
        """Return the answer with these fields as JSON, in the order of the training examples."""
        ordered = {path: fields[path] for path in self.paths if path in fields}
        return json.dumps(unflatten(ordered, self.containers), ensure_ascii=False)


def flat_answers(rows: TrainingRows) -> list[dict[Path_, Any]]:
    """Return the fields of each example's answer."""
    return [flatten(json.loads(one.answer)) for one in rows.examples]


class Fields(Rung):
    """Fields of JSON objects. A field whose values stand in the prompt is found by a linear-chain conditional random field over the words
    of the prompt (Lafferty et al. 2001), and any other field is chosen by logistic regression, which may leave it out.

    Each value of the leading field has a conditional random field of its own. Raises ConfigError without scikit-learn and python-crfsuite.
    """

    name = "conditional random fields"

    def fit(self, rows: TrainingRows) -> None:
        self.layout, flat = FieldLayout(rows), flat_answers(rows)
        self.chosen = {path: _fit_choice(path, rows, flat) for path in self.layout.chosen}
        groups: dict[str, list[tuple[list[str], list[str]]]] = {"": []}
        for one, fields in zip(rows.examples, flat, strict=True):
            tagged = tag(one.prompt, self.layout.only_copied(fields))
            groups[""].append(tagged)
            if self.layout.leading:
                groups.setdefault(as_text(fields[self.layout.leading]), []).append(tagged)
        self.taggers = {
            value: CrfTagger(group) for value, group in groups.items() if not value or len(group) >= FEWEST
        } if self.layout.copied else {}  # fmt: skip

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        choices = {path: rung.predict(prompts) for path, rung in self.chosen.items()}
        guesses = []
        for place, prompt in enumerate(prompts):
            chosen = {path: guess[place] for path, guess in choices.items()}
            found = {path: json.loads(guess.answer) for path, guess in chosen.items() if guess.answer}
            probability = math.prod(guess.probability for guess in chosen.values())
            if self.taggers:
                value = as_text(found.get(self.layout.leading)) if self.layout.leading else ""
                spans, sure = self.taggers.get(value, self.taggers[""]).find(prompt)
                found, probability = spans | found, probability * sure
            guesses.append(Guess(self.layout.answer(found), probability))
        return guesses

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without dictionaries whose keys are paths, because JSON keys are strings."""
        return vars(self) | {"chosen": [*self.chosen.items()]}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, chosen=dict(state["chosen"]))


class CrfTagger:
    """A conditional random field, fitted on words and their tags."""

    def __init__(self, rows: Sequence[tuple[list[str], list[str]]]) -> None:
        with require_extra("teach", "pycrfsuite"):
            import pycrfsuite

        trainer = pycrfsuite.Trainer(verbose=False)
        trainer.set_params(CRF)
        for words, tags in rows:
            if words:
                trainer.append([*word_features(words)], tags)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "crf"
            trainer.train(str(file))
            self._open(file.read_bytes())

    def _open(self, model: bytes) -> None:
        with require_extra("teach", "pycrfsuite"):
            import pycrfsuite
        self.model, self.tagger = model, pycrfsuite.Tagger()
        self.tagger.open_inmemory(model)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._open(state["model"])

    def find(self, prompt: str) -> tuple[dict[Path_, Any], float]:
        """Return the first span of each field, and the probability of all tags."""
        matches = [*TOKEN.finditer(prompt)]
        if not matches:
            return {}, 1.0
        tags = self.tagger.tag([*word_features([match.group() for match in matches])])
        return spans(prompt, tags), self.tagger.probability(tags)


def spans(prompt: str, tags: Sequence[str]) -> dict[Path_, str]:
    """Return the first span of each field in a prompt whose words have these tags."""
    found: dict[Path_, tuple[int, int]] = {}
    open_ = ""
    for tag_, match in zip(tags, TOKEN.finditer(prompt), strict=True):
        kind, _, name = tag_.partition(" ")
        path: Path_ = tuple(json.loads(name)) if name else ()
        if kind == "B" and path not in found:
            found[path], open_ = match.span(), name
        elif kind == "I" and name == open_:
            found[path] = found[path][0], match.end()
        else:
            open_ = ""
    return {path: prompt[start:end] for path, (start, end) in found.items()}


def tag(prompt: str, fields: Mapping[Path_, Any]) -> tuple[list[str], list[str]]:
    """Return the words of a prompt and a tag for each: `B FIELD` at the first word of a field's value, `I FIELD` at its others, or `O`.
    Longer values are placed first, each at its first free place. A value that is not there is left out."""
    matches = [*TOKEN.finditer(prompt)]
    tags = ["O"] * len(matches)
    starts, ends = (
        {match.start(): n for n, match in enumerate(matches)},
        {match.end(): n for n, match in enumerate(matches)},
    )
    for path, value in sorted(fields.items(), key=lambda item: -len(as_text(item[1]))):
        for match in re.finditer(re.escape(as_text(value)), prompt, re.IGNORECASE):
            first, last = starts.get(match.start()), ends.get(match.end())
            if first is not None and last is not None and set(tags[first : last + 1]) == {"O"}:
                name = json.dumps(path)
                tags[first : last + 1] = [f"B {name}"] + [f"I {name}"] * (last - first)
                break
    return [match.group() for match in matches], tags


def word_features(words: Sequence[str]) -> Iterator[dict[str, float]]:
    """Yield the features of each word: the word, its ends and shape, and the two words on either side."""
    lower = [word.lower() for word in words]
    for place, word in enumerate(words):
        names = [f"w {lower[place]}", f"p {lower[place][:3]}", f"s {lower[place][-3:]}", f"h {_shape(word)}"]
        for step in (-2, -1, 1, 2):
            at = place + step
            inside = 0 <= at < len(words)
            names.append(f"{step} {lower[at] if inside else '#'}")
            if abs(step) == 1 and inside:
                names += [f"{step} h {_shape(words[at])}", f"{step} b {lower[min(at, place)]} {lower[max(at, place)]}"]
        yield dict.fromkeys(names, 1.0)


def flatten(value: Any, at: Path_ = ()) -> dict[Path_, Any]:
    """Return the values of a JSON value that are no objects, by their path of keys."""
    if isinstance(value, dict):
        return {path: leaf for key, inner in value.items() for path, leaf in flatten(inner, (*at, key)).items()}
    return {at: value}


def objects(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of each object in a JSON value."""
    if isinstance(value, dict):
        yield at
        for key, inner in value.items():
            yield from objects(inner, (*at, key))


def unflatten(values: Mapping[Path_, Any], containers: Iterable[Path_] = ()) -> Any:
    """Return the JSON value whose parts are `values`. The objects at `containers` are there even if they are empty."""
    made: Any = {}
    for path in sorted(containers, key=len):
        inside = made
        for key in path:
            inside = inside.setdefault(key, {})
    for path, value in values.items():
        if not path:
            return value
        inside = made
        for key in path[:-1]:
            if not isinstance(inside.get(key), dict):
                inside[key] = {}
            inside = inside[key]
        if not isinstance(inside.get(path[-1]), dict):
            inside[path[-1]] = value
    return made


def _share_in_prompt(path: Path_, examples: Sequence[Example], flat: Sequence[Mapping[Path_, Any]]) -> float:
    pairs = [(one.prompt.lower(), fields[path]) for one, fields in zip(examples, flat, strict=True) if path in fields]
    return sum(isinstance(value, str) and bool(value) and value.lower() in prompt for prompt, value in pairs) / len(
        pairs
    )


def _fit_choice(path: Path_, rows: TrainingRows, flat: Sequence[Mapping[Path_, Any]]) -> LogisticRegression:
    """Return a classifier from the prompt to the field's value as JSON, or to "" where the field is left out."""
    answers = [as_json(one, path) for one in flat]
    examples = [Example(one.line, one.prompt, answer) for one, answer in zip(rows.examples, answers, strict=True)]
    choices: dict[str, Features] = {"words and characters": TfIdf(words=True)}
    rung = LogisticRegression(" ".join(path), choices)
    rung.fit(TrainingRows(examples, "text"))
    return rung


def as_json(fields: Mapping[Path_, Any], path: Path_) -> str:
    """Return the value of a field as JSON, or "" if it is left out."""
    return json.dumps(fields[path], ensure_ascii=False) if path in fields else ""


def as_text(value: Any) -> str:
    """Return a string as it is, and any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shape(word: str) -> str:
    return (
        "d"
        if word.isdigit()
        else "X"
        if word.isupper()
        else "Xx"
        if word[:1].isupper()
        else "x"
        if word.isalpha()
        else "."
    )
