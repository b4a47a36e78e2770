"""A rung for JSON answers: a fine-tuned encoder whose states give the tags of a conditional random field and the chosen fields."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from rorqual.teach.rungs.crf import best_path, log_partition, path_score
from rorqual.teach.rungs.fields import TOKEN, FieldLayout, as_json, flat_answers, spans, tag, word_features
from rorqual.teach.rungs.rung import Guess, TrainingRows
from rorqual.teach.rungs.tuning import TunedRung, token_places

UNSEEN, FORBIDDEN = -6.0, -1e4
"""Scores before training: of a tag that was not seen with a value of the leading field, and of a tag that continues a value which has
not begun."""


@dataclass(frozen=True)
class _Input:
    """A prompt: the ids of its tokens, and for each word the place of its first token and its known features."""

    ids: list[int]
    places: list[int]
    features: list[list[int]]


class TunedFields(TunedRung):
    """Fields of JSON objects. Copied fields are found by one conditional random field. The score of a tag is a sum over the encoder's state
    at the word, the features of `Fields`, and the value of the leading field. Each chosen field has a softmax on the mean state.

    The probability is that of the chosen fields times that of all tags.
    """

    rates = {"features": 7.0}

    def fit(self, rows: TrainingRows) -> None:
        self.layout = FieldLayout(rows)
        rows = TrainingRows([one for one in rows.examples if TOKEN.search(one.prompt)], rows.kind)
        flat = flat_answers(rows)
        copied = [self.layout.only_copied(fields) for fields in flat]
        tagged = [tag(prompt, fields) for prompt, fields in zip(rows.prompts, copied, strict=True)]
        self.tags = [*dict.fromkeys(["O", *(name for _, names in tagged for name in names)])]
        known = dict.fromkeys(name for words, _ in tagged for word in word_features(words) for name in word)
        self.features = {name: place for place, name in enumerate(known)}
        self.values = [[*dict.fromkeys(as_json(fields, path) for fields in flat)] for path in self.layout.chosen]
        inputs = self._inputs(rows.prompts)
        tags = [torch.tensor([self.tags.index(name) for name in names]) for _, names in tagged]
        answers = [
            [values.index(as_json(one, path)) for path, values in zip(self.layout.chosen, self.values, strict=True)]
            for one in flat
        ]

        def loss(batch: Sequence[int]) -> Tensor:
            emissions, logits = self._scores([inputs[place] for place in batch])
            total = torch.zeros(())
            for scores, place in zip(logits, batch, strict=True):
                for values, right in zip(scores, answers[place], strict=True):
                    total = total + F.cross_entropy(values, torch.tensor(right))
            led = [one + self.head["leading"][self._led(answers[place])] for one, place in zip(emissions, batch)]
            first, following = self.head["first"], self.head["following"]
            paths = [path_score(one, tags[place], first, following) for one, place in zip(led, batch, strict=True)]
            return (total + (log_partition(led, first, following) - torch.stack(paths)).sum()) / len(batch)

        self.tune(self._new_head(tags, answers), [len(one.ids) for one in inputs], loss)

    def _led(self, answer: Sequence[int]) -> int:
        """Return the value of the leading field of an answer, which is given as a value for each chosen field, or 0 without such a field."""
        leading = self.layout.leading
        return answer[self.layout.chosen.index(leading)] if leading else 0

    def _new_head(self, tags: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        count, width = len(self.tags), self.pretrained.config.hidden_size
        led = [self._led(answer) for answer in answers]
        leading = torch.full((max(led, default=0) + 1, count), UNSEEN)
        for value, names in zip(led, tags, strict=True):
            leading[value, names] = 0.0
        begun = [{f"B{name[1:]}", name} for name in self.tags]
        following = [
            [FORBIDDEN * (two[0] == "I" and one not in may) for two, may in zip(self.tags, begun)] for one in self.tags
        ]
        chosen = sum(map(len, self.values))
        return {
            "state": torch.zeros(count, width), "features": torch.zeros(len(self.features), count), "leading": leading,
            "first": torch.tensor([FORBIDDEN * (name[0] == "I") for name in self.tags]),
            "following": torch.tensor(following), "chosen": torch.zeros(chosen, width), "bias": torch.zeros(chosen),
        }  # fmt: skip

    def _inputs(self, prompts: Sequence[str]) -> list[_Input]:
        inputs = []
        for prompt, encoding in zip(prompts, self.encoder.tokenizer.encode_batch(prompts), strict=True):
            matches = [*TOKEN.finditer(prompt)]
            places = token_places(encoding, [match.start() for match in matches])
            words = word_features([match.group() for match in matches])
            features = [[self.features[name] for name in word if name in self.features] for word in words]
            inputs.append(_Input(encoding.ids, places, features))
        return inputs

    def _scores(self, inputs: Sequence[_Input]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return for each prompt the score of each tag at each word [words, tags], without the leading field, and for each chosen field
        the logits of its values."""
        emissions, logits = [], []
        for states, one in zip(self.encoder.hidden([one.ids for one in inputs]), inputs, strict=True):
            known = torch.tensor([feature for word in one.features for feature in word], dtype=torch.long)
            starts = torch.tensor([0, *accumulate(map(len, one.features))][:-1], dtype=torch.long)
            by_word = F.embedding_bag(known, self.head["features"], starts, mode="sum")
            emissions.append(states[one.places] @ self.head["state"].T + by_word)
            pooled = F.linear(states.mean(0), self.head["chosen"], self.head["bias"])
            logits.append([*pooled.split([len(values) for values in self.values])])
        return emissions, logits

    @torch.inference_mode()
    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        guesses = []
        for prompt, one in zip(prompts, self._inputs(prompts), strict=True):
            [emissions], [logits] = self._scores([one])
            answer = [int(scores.argmax()) for scores in logits]
            logprob = sum(float(scores.log_softmax(0).max()) for scores in logits)
            texts = {path: values[place] for path, values, place in zip(self.layout.chosen, self.values, answer)}
            found = {path: json.loads(text) for path, text in texts.items() if text}
            if one.places:
                led, first, following = (
                    emissions + self.head["leading"][self._led(answer)],
                    self.head["first"],
                    self.head["following"],
                )
                path = best_path(led, first, following)
                found = spans(prompt, [self.tags[place] for place in path]) | found
                score = path_score(led, torch.tensor(path), first, following)
                logprob += float(score - log_partition([led], first, following)[0])
            guesses.append(Guess(self.layout.answer(found), math.exp(min(0.0, logprob))))
        return guesses
