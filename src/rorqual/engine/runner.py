"""Running the model: prefill of admitted prompts, and the decode step that every active row shares."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rorqual.core.errors import ConfigError, NumericsError
from rorqual.engine.cache import KVCache, round_up
from rorqual.engine.kernels import for_generation
from rorqual.engine.request import SamplingParams
from rorqual.engine.sampler import Settings, distribution, draw_from, uniform
from rorqual.engine.scheduler import Ints, Rows, Sequence
from rorqual.model import Decoder, Output

PREFILL_TOKENS = 8192
"""Tokens, padding included, in one forward of a prefill: it bounds the memory of masks and activations."""
CACHE_BYTES = 1 << 30
"""The most that a lane's cache takes: of long sequences of a large model fewer run at once."""


@dataclass(frozen=True)
class Sampled:
    """What a finished sequence leaves: ids of its reply, their log-probabilities, experts of each fed position, kept sets."""

    token_ids: list[int]
    logprobs: list[float]
    experts: Tensor | None
    kept: npt.NDArray[np.uint8] | None


def routed_layers(model: Decoder) -> tuple[int, int, int]:
    """Mixture-of-experts layers, experts a token, experts; zeros for a dense model."""
    ffns = [stage.ffn for stage in model.config.layers if stage.ffn.experts_per_token()]
    if not ffns:
        return 0, 0, 0
    widths = {ffn.experts_per_token() for ffn in ffns}
    if len(widths) > 1:
        raise ConfigError(
            f"layers route to different numbers of experts: {sorted(widths)}",
            where="engine",
            remedy="Pass record_experts=False.",
        )
    return len(ffns), widths.pop(), max(getattr(ffn, "n_routed_experts", 0) for ffn in ffns)


class Runner:
    """Cache and histories for `slots` sequences. Rows are numbered as the scheduler says, histories by slot.

    Everything is sized by what was asked of it so far, not by the model's longest context.
    """

    def __init__(self, model: Decoder, slots: int, *, record_experts: bool, record_kept: bool = False) -> None:
        # A shallow copy: the same parameters, in the same dictionaries, run with other operations.
        self.model, self.slots = copy.copy(model), slots
        self.model.ops = for_generation(model.ops)
        self.layers, self.k, n_experts = routed_layers(model) if record_experts else (0, 0, 0)
        self.expert_dtype = torch.uint8 if n_experts <= 256 else torch.int16
        weight = model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.cache = KVCache(model.config, slots, 0, self.device, self.dtype)
        self.tokens = np.zeros((slots, 0), np.int64)
        self.logprobs = np.zeros((slots, 0), np.float32)
        self.experts = torch.zeros(slots, 0, self.layers, self.k, dtype=self.expert_dtype, device=self.device)
        # A bit for each token of the vocabulary.
        self.kept = np.zeros((slots, 0, -(-model.config.vocab_size // 8) if record_kept else 0), np.uint8)
        self.current = np.zeros(slots, np.int64)  # the token each row feeds next
        self._settings: Settings | None = None

    def reserve(self, max_len: int, active: int = 0) -> int:
        """Make room for sequences of `max_len` ids, in at least the `active` rows in use; returns how many rows there are."""
        weight = self.model.embed_tokens.weight
        if (weight.device, weight.dtype) != (self.device, self.dtype):
            raise ConfigError(
                f"the model was moved to {weight.device}, {weight.dtype} under an engine on {self.device}, {self.dtype}",
                where="engine",
                remedy="Build a new Engine after moving a model.",
            )
        old = self.tokens.shape[1]
        if max_len <= old:
            return self.cache.slots
        new = round_up(max_len)
        affordable = max(CACHE_BYTES // max(self.cache.token_bytes * new, 1), 1)
        self.cache.grow(new, max(active, min(self.slots, affordable)))
        self.tokens = np.pad(self.tokens, ((0, 0), (0, new - old)))
        self.logprobs = np.pad(self.logprobs, ((0, 0), (0, new - old)))
        self.kept = np.pad(self.kept, ((0, 0), (0, new - old), (0, 0)))
        experts = self.experts.new_zeros(self.slots, new, self.layers, self.k)
        experts[:, :old] = self.experts
        self.experts = experts
        return self.cache.slots

    # ---- admission

    def admit(self, sequences: list[Sequence], first_row: int) -> None:
        """Take in `sequences` as rows first_row.. and cache all of each prompt but its last token, which decode feeds.

        Distinct prompts come first; each is prefilled once and copied to the rows that share it.
        """
        self._settings = None
        leader: dict[tuple[int, ...], int] = {}
        followers: list[tuple[int, int]] = []  # (place, place of its leader)
        for place, sequence in enumerate(sequences):
            prompt = sequence.prompt
            # What pads a prompt must not depend on the past either: it shares products with its neighbours' tokens,
            # and the number of rows in a product decides how it is rounded.
            self.tokens[sequence.slot] = 0
            self.tokens[sequence.slot, : len(prompt)] = prompt
            self.current[first_row + place] = prompt[-1]
            if leader.setdefault(prompt, place) != place:
                followers.append((place, leader[prompt]))
        heads = sequences[: len(leader)]
        for start, stop in self._blocks([len(s.prompt) - 1 for s in heads]):
            self._prefill(heads[start:stop], first_row + start)
        longest = max(len(s.prompt) for s in sequences) - 1
        if followers and longest:
            to, from_ = torch.tensor(followers, device=self.device).t()
            self.cache.copy(to + first_row, from_ + first_row, longest)
            slots = torch.tensor([s.slot for s in sequences], device=self.device)
            self.experts[slots[to], :longest] = self.experts[slots[from_], :longest]

    @staticmethod
    def _blocks(lengths: list[int]) -> list[tuple[int, int]]:
        """Cut ascending lengths into runs whose padded size stays within PREFILL_TOKENS; lengths of 0 need no run."""
        blocks: list[tuple[int, int]] = []
        start = sum(length == 0 for length in lengths)
        for stop in range(start + 1, len(lengths) + 1):
            if stop == len(lengths) or (stop + 1 - start) * lengths[stop] > PREFILL_TOKENS:
                blocks.append((start, stop))
                start = stop
        return blocks

    def _prefill(self, sequences: list[Sequence], first_row: int) -> None:
        """Feed prompts without their last tokens, right-padded, in chunks along the sequence."""
        rows, longest = len(sequences), len(sequences[-1].prompt) - 1
        slots = np.array([s.slot for s in sequences])
        tokens = torch.from_numpy(self.tokens[slots, :longest]).to(self.device)
        chunk = max(1, PREFILL_TOKENS // rows)
        for start in range(0, longest, chunk):
            stop = min(start + chunk, longest)
            positions = torch.arange(start, stop, device=self.device).expand(rows, -1)
            view = self.cache.view(first_row, first_row + rows, stop)
            output = self.model(tokens[:, start:stop], positions, cache=view)
            if self.layers:
                chosen = self._chosen(output).view(rows, stop - start, self.layers, self.k)
                self.experts[torch.from_numpy(slots).to(self.device), start:stop] = chosen

    def _chosen(self, output: Output) -> Tensor:
        return torch.stack([routing.indices for routing in output.routing], dim=1).to(self.expert_dtype)

    # ---- decoding

    def step(self, rows: Rows, n: int) -> Ints:
        """Feed each of the first `n` rows its token, draw the next and keep it; the tokens drawn [n]."""
        position, slot = rows.position[:n], rows.slot[:n]
        tokens = torch.from_numpy(self.current[:n, None]).to(self.device)
        positions = torch.from_numpy(position[:, None]).to(self.device)
        view = self.cache.view(0, n, int(position.max()) + 1)
        output = self.model(tokens, positions, cache=view)
        if self.layers:
            place = torch.from_numpy(slot * self.experts.shape[1] + position).to(self.device)
            self.experts.flatten(0, 1).index_copy_(0, place, self._chosen(output))
        if self._settings is None:
            columns = (c[:n].tolist() for c in (rows.temperature, rows.top_p, rows.top_k))
            asked = [SamplingParams(temperature=t, top_p=p, top_k=k) for t, p, k in zip(*columns)]
            self._settings = Settings.of(asked, self.device)
        logits = self.model.logits(output.hidden[:, 0])
        every = distribution(logits, self._settings)
        drawn, logprobs = draw_from(every, logits, self._settings, uniform(rows.key[:n], position))
        if self.kept.shape[-1]:
            self.kept[slot, position + 1] = np.packbits(every.isfinite().cpu().numpy(), axis=-1)
        new: Ints = drawn.cpu().numpy()
        self.tokens[slot, position + 1] = new
        self.logprobs[slot, position + 1] = logprobs.cpu().numpy()
        self.current[:n] = new
        return new

    def close(self, holes: Ints, movers: Ints, keys: int) -> None:
        """Rows left: move the first `keys` positions of `movers` into `holes` (both may be empty)."""
        self._settings = None
        if len(holes):
            self.current[holes] = self.current[movers]
            to, from_ = torch.from_numpy(holes).to(self.device), torch.from_numpy(movers).to(self.device)
            self.cache.copy(to, from_, keys)

    def take(self, sequence: Sequence, length: int) -> Sampled:
        """The history of a sequence of `length` ids."""
        start, slot = len(sequence.prompt), sequence.slot
        logprobs = self.logprobs[slot, start:length]
        if not np.isfinite(logprobs).all():
            raise NumericsError(
                f"the model gave a logit that is not a number, for a prompt of {start} tokens",
                where="engine",
                remedy="Its weights hold NaN or infinity: go back to an earlier checkpoint.",
            )
        experts = self.experts[slot, : length - 1].cpu().clone() if self.layers else None
        kept = self.kept[slot, start:length].copy() if self.kept.shape[-1] else None
        return Sampled(self.tokens[slot, start:length].tolist(), logprobs.tolist(), experts, kept)
