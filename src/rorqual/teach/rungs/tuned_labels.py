"""A rung for labels: a fine-tuned encoder with a linear layer on the mean of its last hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rorqual.teach.rungs.classifiers import NAME_WEIGHTS, label_name
from rorqual.teach.rungs.rung import Guess, TrainingRows
from rorqual.teach.rungs.tuning import TunedRung

SCALE = 10.0
"""Length of each row of the linear layer before training. The row has the direction of the mean embedding of the label's prompts."""


class TunedLabels(TunedRung):
    """Softmax regression on a fine-tuned encoder's embedding of the prompt. The name of a label counts as a prompt with this label."""

    def fit(self, rows: TrainingRows) -> None:
        self.answers = rows.answers
        texts = [*rows.prompts, *map(label_name, rows.answers)]
        classes = torch.tensor([*rows.classes, *range(len(rows.answers))])
        weights = torch.tensor([1.0] * len(rows.prompts) + [max(NAME_WEIGHTS)] * len(rows.answers))
        ids = [encoding.ids for encoding in self.pretrained.tokenizer.encode_batch(texts)]
        embeddings = torch.tensor(self.pretrained.embed(texts))
        means = torch.stack([embeddings[classes == place].mean(0) for place in range(len(rows.answers))])
        head = {"weight": SCALE * F.normalize(means, dim=1), "bias": torch.zeros(len(means))}

        def loss(batch: Sequence[int]) -> Tensor:
            logits = self._logits([ids[place] for place in batch])
            return (F.cross_entropy(logits, classes[batch], reduction="none") * weights[batch]).mean()

        self.tune(head, [len(one) for one in ids], loss)

    def _logits(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Return the logits [texts, labels] of texts, given as token ids."""
        embeddings = torch.stack([F.normalize(states.mean(0), dim=0) for states in self.encoder.hidden(ids)])
        return F.linear(embeddings, self.head["weight"], self.head["bias"])

    @torch.inference_mode()
    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        guesses = []
        for encoding in self.encoder.tokenizer.encode_batch(prompts):
            shares = self._logits([encoding.ids])[0].softmax(0).numpy()
            guesses.append(Guess(self.answers[int(np.argmax(shares))], float(shares.max())))
        return guesses
