"""Rungs with a fine-tuned encoder: the encoder's layers and a head are trained together on the training examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor

from rorqual.teach.encoder import Encoder
from rorqual.teach.rungs.rung import Rung

EPOCHS, BATCH = 6, 16
MOST_TOKENS = 40_000
"""Training ends after `EPOCHS` epochs or `MOST_TOKENS` tokens, which take MiniLM about 40 core-seconds."""
RATE, HEAD_RATE, LAYER_DECAY = 2e-4, 3e-3, 0.9
"""Peak learning rates of the encoder's last layer and of the head. Each layer has `LAYER_DECAY` times the rate of the layer above it."""
WARMUP, WEIGHT_DECAY = 0.1, 0.01
"""Share of the training in which the learning rates rise to their peaks, before they fall to 0; and AdamW's weight decay."""


class TunedRung(Rung):
    """A rung with a fine-tuned copy of an encoder and with a head of named tensors. `seed` decides the order of the examples.

    A file of the rung has the whole fine-tuned encoder.
    """

    name = "fine-tuned encoder"
    slow = True
    rates: Mapping[str, float] = {}
    """Learning rates of tensors of the head, as multiples of `HEAD_RATE`, where they are not 1."""

    def __init__(self, encoder: Encoder, seed: int = 0) -> None:
        self.pretrained, self.encoder, self.seed = encoder, encoder, seed

    def tune(self, head: dict[str, Tensor], lengths: Sequence[int], loss: Callable[[Sequence[int]], Tensor]) -> None:
        """Train copies of the encoder's layers, and `head` in place. `loss` returns the mean loss of the examples with the given places,
        whose numbers of tokens are `lengths`. The embeddings of tokens and positions are not trained."""
        weights = {
            name: weight.clone().requires_grad_() if name.startswith("encoder.layer.") else weight
            for name, weight in self.pretrained.weights.items()
        }
        self.encoder, self.head = replace(self.pretrained, weights=weights), head
        optimizer = torch.optim.AdamW([*self._layer_groups(), *self._head_groups()], weight_decay=WEIGHT_DECAY)
        total, read, rng = min(EPOCHS * sum(lengths), MOST_TOKENS), 0, np.random.default_rng(self.seed)
        while read < total:
            for batch in np.array_split(rng.permutation(len(lengths)), math.ceil(len(lengths) / BATCH)):
                if read >= total:
                    break
                before, read = read, read + sum(lengths[place] for place in batch)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * min(1, read / (WARMUP * total)) * max(0, 1 - before / total)
                optimizer.zero_grad()
                loss(batch.tolist()).backward()
                optimizer.step()
        for tensor in (*weights.values(), *head.values()):
            tensor.requires_grad_(False)

    def _layer_groups(self) -> list[dict[str, Any]]:
        layers = [f"encoder.layer.{n}." for n in range(self.encoder.config.num_hidden_layers)]
        return [
            {
                "params": [weight for name, weight in self.encoder.weights.items() if name.startswith(layer)],
                "peak": RATE * LAYER_DECAY**above,
            }
            for above, layer in enumerate(reversed(layers))
        ]

    def _head_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [tensor.requires_grad_()], "peak": HEAD_RATE * self.rates.get(name, 1.0)}
            for name, tensor in self.head.items()
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the pretrained encoder, and with numpy arrays."""
        state = {name: value for name, value in vars(self).items() if name != "pretrained"}
        return state | {"head": {name: tensor.numpy() for name, tensor in self.head.items()}}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, head={name: torch.tensor(array) for name, array in state["head"].items()})


def token_places(encoding: Encoding, starts: Sequence[int]) -> list[int]:
    """Return the place of the token at each character of `starts`. It is 0, as that of [CLS], if the tokenizer left the character out."""
    found: dict[int, int] = {}
    for place, (start, end) in enumerate(encoding.offsets):
        for character in range(start, end):
            found.setdefault(character, place)
    return [found.get(start, 0) for start in starts]
