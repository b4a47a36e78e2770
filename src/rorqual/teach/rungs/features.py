"""Features of texts: TF-IDF of words and characters, and the embeddings of an encoder."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rorqual.core.errors import ConfigError
from rorqual.core.extras import require_extra
from rorqual.teach.encoder import Encoder, load_encoder


class Features(ABC):
    """A function from texts to a matrix. The squared length of a row is `squared_length`, or less if parts of the text are unknown."""

    squared_length = 1.0

    @abstractmethod
    def fit(self, texts: Sequence[str]) -> None:
        """Learn from the training prompts."""

    @abstractmethod
    def of(self, texts: Sequence[str]) -> Any:
        """Return the features [texts, features], as a sparse or a dense matrix."""


class TfIdf(Features):
    """TF-IDF of sequences of 2 to 5 characters, or with `words`, of one and two words and of these characters.

    Punctuation counts as words, so that no prompt is without features. Chinese is written without spaces; its characters count.
    Raises ConfigError without scikit-learn.
    """

    def __init__(self, *, words: bool) -> None:
        with require_extra("teach", "sklearn"):
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.pipeline import FeatureUnion
        characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, dtype=np.float32)
        self.made: Any = characters
        if words:
            both = TfidfVectorizer(
                token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32
            )
            self.made = FeatureUnion([("words", both), ("characters", characters)])
            self.squared_length = 2.0  # each of the two parts has length 1

    def fit(self, texts: Sequence[str]) -> None:
        self.made.fit(texts)

    def of(self, texts: Sequence[str]) -> Any:
        return self.made.transform(texts).tocsr()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with each vocabulary as one text, since skops takes long for a dictionary of many items."""
        state = copy.deepcopy(self.__dict__)
        known = [part.__dict__.pop("vocabulary_", {}) for part in _vectorizers(state["made"])]
        return state | {"vocabularies": [json.dumps(sorted(one, key=one.__getitem__)) for one in known]}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__ |= {name: value for name, value in state.items() if name != "vocabularies"}
        for part, text in zip(_vectorizers(self.made), state.get("vocabularies", ()), strict=False):
            if terms := json.loads(text):
                part.vocabulary_ = {term: number for number, term in enumerate(terms)}


def _vectorizers(made: Any) -> list[Any]:
    return [part for _, part in getattr(made, "transformer_list", [("", made)])]


class Embeddings(Features):
    """The embeddings of a pretrained encoder. Those of the training prompts are computed once.

    A file keeps only the encoder's place and the digest of its weights. Raises ConfigError when the file is loaded, if the encoder is
    not there or has other weights.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._known: dict[str, Any] = {}

    def fit(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= dict(zip(new, self.encoder.embed(new), strict=True))

    def of(self, texts: Sequence[str]) -> Any:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]  # not kept: a server is asked for ever
        found = self._known | dict(zip(new, self.encoder.embed(new), strict=True))
        return np.stack([found[text] for text in texts])

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.encoder.place, "digest": self.encoder.digest()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(load_encoder(state["place"]))  # type: ignore[misc]
        if self.encoder.digest() != state["digest"]:
            raise ConfigError(
                "the encoder has other weights than when the rung was fitted",
                where=state["place"] or "the default encoder",
                remedy="Restore the encoder's files, or run `rorqual teach` again.",
            )
