"""Run one forward pass over all scheduled prefill and decode tokens, and sample the new tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.engine.grammar.constraint import Bools, Constraint
from rorqual.engine.kv_cache.paged import PagedCache, StepCache, token_bytes
from rorqual.engine.penalties import Counts
from rorqual.engine.scheduler import Scheduler, SchedulerOutput
from rorqual.engine.seeds import uniform
from rorqual.engine.sequence import Ints, Sequence
from rorqual.model import Decoder
from rorqual.ops.backends import Backend
from rorqual.ops.backends.attention import PAD, AttentionMetadata, Plan
from rorqual.ops.backends.step import StepFunction, StepInput, StepOutput
from rorqual.ops.paged import BLOCK
from rorqual.ops.sampling import SamplerOutput, SamplingMetadata, Settings, likeliest, needs_history


@dataclass(frozen=True)
class Sampled:
    """A finished reply: token ids, log-probabilities, expert ids, tokens that pass top-k and top-p filtering, and most
    likely tokens.

    `Completion` documents the shapes.
    """

    token_ids: list[int]
    logprobs: list[float]
    experts: Tensor | None
    kept: npt.NDArray[np.uint8] | None
    top: list[list[tuple[int, float]]] | None


@dataclass(frozen=True)
class Saved:
    """Per-token results of a preempted sequence. A second prefill does not recompute these results, so they are
    saved."""

    logprobs: npt.NDArray[np.float32]
    kept: npt.NDArray[np.uint8]
    top: list[list[tuple[int, float]]]


def routed_layers(model: Decoder) -> tuple[int, int, int]:
    """Return three counts: MoE layers, experts per token, and possible expert ids. All three counts are 0 for a dense
    model.

    Raises ConfigError if the number of experts per token differs between layers.
    """
    ffns = [ffn for ffn in model.config.ffns if ffn.experts_per_token()]
    if not ffns:
        return 0, 0, 0
    widths = {ffn.experts_per_token() for ffn in ffns}
    if len(widths) > 1:
        raise ConfigError(
            f"cannot record experts: the number of experts per token differs between layers, {sorted(widths)}",
            where="engine",
            remedy="Set record_experts=False.",
        )
    return len(ffns), widths.pop(), max(ffn.n_choices() for ffn in ffns)


SCORED = 64
"""Maximum number of prompt positions whose logits are in memory at the same time."""


def filled(tokens: int, rows: int) -> int:
    """Return the number of tokens of a step, rounded up to a multiple of `rows`.

    Steps above 32 tokens are rounded up to a multiple of 16, or of `rows` if it is larger than 16. Steps above 256
    tokens are rounded up to a multiple of 64.

    Padding keeps the number of distinct sizes small, because oneDNN builds primitives for each size.
    """
    multiple = rows if tokens <= 32 else max(rows, 16) if tokens <= 256 else 64
    return -(-tokens // multiple) * multiple


class Runner:
    """Runs the model on a batch, and stores two things: a KV cache with `blocks` blocks, and the token histories of
    `slots` sequences.

    A sequence has at most `max_len` token ids. Histories are indexed by slot.
    """

    def __init__(
        self,
        model: Decoder,
        slots: int,
        max_len: int,
        blocks: int,
        backend: Backend,
        *,
        record_experts: bool,
        record_kept: bool = False,
    ) -> None:
        self._source = model
        self.renew(backend)
        self.layers, self.k, self._choices = routed_layers(model) if record_experts else (0, 0, 0)
        weight = model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        expert_dtype = torch.int8 if self._choices <= 128 else torch.int16  # signed: -1 means that no expert was chosen
        self.cache = PagedCache(
            backend.attention,
            model.config,
            blocks,
            self.device,
            self.dtype,
            max_len,
            (self.layers, self.k),
            expert_dtype,
        )
        self.vocab = model.config.vocab_size
        # np.zeros takes memory only for pages that are written, so memory use depends on the actual lengths, not on
        # `max_len`.
        self.ids = np.zeros((slots, max_len), np.int64)
        self.logprobs = np.zeros((slots, max_len), np.float32)
        self.kept = np.zeros((slots, max_len, -(-self.vocab // 8) if record_kept else 0), np.uint8)
        self.block_table = np.zeros((slots, -(-max_len // BLOCK)), np.int64)
        self.top: dict[int, list[list[tuple[int, float]]]] = {}  # slot -> most likely tokens, if requested
        self.counts = Counts(slots, self.vocab)
        self._settings: Settings | None = None
        self._constrained: list[tuple[int, Constraint]] = []
        self._with_min_tokens: list[int] = []
        self._version = -1
        self._plan: Plan | None = None
        self.holds_non_finite = False
        """Whether a NaN or infinity was ever written to the KV cache."""

    def renew(self, backend: Backend) -> None:
        """Bind the model to `backend` again, after the model's modules or weights have changed."""
        self.backend, self.model = backend, backend.bind(self._source)
        self._step: StepFunction = backend.compile(self.model) or EagerStep(self.model)

    @staticmethod
    def block_bytes(model: Decoder) -> int:
        """Return the bytes of one KV-cache block."""
        return round(token_bytes(model.config, model.embed_tokens.weight.dtype) * BLOCK)

    def check(self) -> None:
        """Raise ConfigError if the model was moved to another device or dtype."""
        weight = self.model.embed_tokens.weight
        if (weight.device, weight.dtype) != (self.device, self.dtype):
            raise ConfigError(
                f"the engine runs on {self.device} in {self.dtype}, but its model was moved to {weight.device}, {weight.dtype}",
                where="engine",
                remedy="Create a new Engine after moving a model.",
            )

    # ---- histories

    def place(self, sequence: Sequence) -> None:
        """Write the history of a newly admitted sequence into its slot."""
        slot, known = sequence.slot, len(sequence.tokens)
        self.ids[slot, :known] = sequence.tokens
        self.top[slot] = []
        start = len(sequence.prompt)
        if isinstance(
            sequence.saved, Saved
        ):  # keep `saved`: the sequence may be preempted again before it samples a token
            self.logprobs[slot, start:known] = sequence.saved.logprobs
            self.kept[slot, start:known] = sequence.saved.kept
            self.top[slot] = list(sequence.saved.top)
        if needs_history(sequence.params):
            self.counts.add(slot, sequence.prompt, sequence.tokens[start:])
        else:
            self.counts.drop(slot)

    def tokens(self, slot: int, length: int) -> list[int]:
        """Return the first `length` token ids of the sequence in `slot` (see `History`)."""
        ids: list[int] = self.ids[slot, :length].tolist()
        return ids

    def save(self, slot: int, start: int, length: int) -> Saved:
        """Return the per-token results of tokens [start, length) in `slot` (see `History`)."""
        part = slice(start, length)
        return Saved(self.logprobs[slot, part].copy(), self.kept[slot, part].copy(), self.top[slot])

    def newest(self, scheduler: Scheduler) -> tuple[list[float], list[tuple[tuple[int, float], ...]]]:
        """Return two lists with one entry per row: the log-probability of the newest token, and the most likely tokens.

        A row's most likely tokens are () unless its request sets `top_logprobs`.
        """
        n = len(scheduler.running)
        slot = scheduler.rows.slot[:n]
        logprobs: list[float] = self.logprobs[slot, scheduler.rows.position[:n]].tolist()
        best = [tuple(self.top[s.slot][-1]) if s.params.top_logprobs else () for s in scheduler.running]
        return logprobs, best

    def take(self, sequence: Sequence, length: int) -> Sampled:
        """Return the reply of a finished sequence. `length` is the sequence's number of tokens, prompt and reply
        together."""
        start, slot = len(sequence.prompt), sequence.slot
        logprobs = self.logprobs[slot, start:length]
        experts = None
        if self.layers:
            blocks = torch.tensor(sequence.blocks, device=self.device)
            experts = self.cache.experts.index_select(0, blocks).flatten(0, 1)[: length - 1].cpu()
        kept = self.kept[slot, start:length].copy() if self.kept.shape[-1] else None
        best = self.top[slot] if sequence.params.top_logprobs else None
        return Sampled(self.ids[slot, start:length].tolist(), logprobs.tolist(), experts, kept, best)

    # ---- a step

    def step(self, plan: SchedulerOutput, scheduler: Scheduler) -> Ints:
        """Run the model on the scheduled tokens, sample one token per row, store the tokens and return them [rows]."""
        rows, n = scheduler.rows, plan.decode
        slot, position = rows.slot[:n], rows.position[:n]
        self._update_block_table(plan, scheduler)
        chunks = plan.chunks
        size = n + sum(c.stop - c.start for c in chunks)
        ids = np.zeros(filled(size, self.backend.rows.least), np.int64)
        positions, slot_mapping = np.zeros_like(ids), np.full_like(ids, PAD)
        ids[:n], positions[:n] = self.ids[slot, position], position
        slot_mapping[:n] = self.block_table[slot, position // BLOCK] * BLOCK + position % BLOCK
        stop = n
        ends, scored = [], list[tuple[Sequence, int, range]]()
        for chunk in chunks:
            start, stop = stop, stop + chunk.stop - chunk.start
            if (scores := chunk.sequence.scores) is not None:
                scored.append((chunk.sequence, start - chunk.start, scores.wanted(chunk.start, chunk.stop)))
            chunk_positions = np.arange(chunk.start, chunk.stop)
            ids[start:stop] = self.ids[chunk.sequence.slot, chunk.start : chunk.stop]
            positions[start:stop] = chunk_positions
            slot_mapping[start:stop] = (
                self.block_table[chunk.sequence.slot, chunk_positions // BLOCK] * BLOCK + chunk_positions % BLOCK
            )
            ends.append(stop - 1)
        # Padding tokens copy the first token, so that they are routed to the same experts.
        ids[size:], positions[size:] = ids[0], positions[0]
        metadata = self._metadata(plan, slot, position, slot_mapping)
        self._plan = self.backend.attention.plan(metadata, self.device, self._plan)
        cache = StepCache(self.cache, self._plan)
        embeds = self._embeds(plan, ids, size)
        last = [*range(n), *(ends[chunk] for _, chunk in plan.joined)]
        sampling = self._sampling(scheduler, len(last)) if last else None
        step_input = StepInput(
            self._tensor(ids[None]),
            self._tensor(positions[None]),
            cache,
            self._tensor(np.array(last, np.int64)),
            sampling,
            embeds,
            self.layers > 0,
        )
        output = self._checked(self._step(step_input), step_input)
        self.holds_non_finite |= not math.isfinite(float(output.hidden.sum()))
        if output.experts is not None and self.layers:
            chosen = self._check_expert_ids(output.experts).to(self.cache.experts.dtype)
            self.cache.experts.flatten(0, 1).index_copy_(0, self._tensor(slot_mapping.clip(min=0)), chosen)
        self._score(output.hidden, scored)
        new = np.zeros(0, np.int64) if output.sampled is None else self._keep(output.sampled, scheduler)
        if plan.copies:
            self.cache.copy(*zip(*plan.copies))
        return new

    def _check_expert_ids(self, experts: Tensor) -> Tensor:
        """Return the expert ids. Raises ValueError if an id is `n_choices()` or higher, because such an id may be too
        large for the dtype of `PagedCache.experts`."""
        if (highest := int(experts.max())) >= self._choices:
            raise ValueError(f"a feed-forward network chose expert {highest}, but its `n_choices()` is {self._choices}")
        return experts

    def _checked(self, output: StepOutput, step_input: StepInput) -> StepOutput:
        """Return the output of a step. Raises ValueError if the backend left out a tensor or a shape is wrong."""
        sampled, tokens, rows = output.sampled, step_input.ids.shape[1], len(step_input.last)
        shapes: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
            "hidden states": (output.hidden, (tokens, self.model.config.hidden_size))
        }
        if self.layers:
            shapes["experts"] = (output.experts, (tokens, self.layers, self.k))
        if step_input.sampling is not None:
            shapes["ids"] = (None if sampled is None else sampled.ids, (rows,))
            shapes["log-probabilities"] = (None if sampled is None else sampled.logprobs, (rows,))
        for name, (tensor, shape) in shapes.items():
            if tensor is None or tuple(tensor.shape) != shape:
                actual = "none" if tensor is None else f"shape {list(tensor.shape)}"
                raise ValueError(
                    f"backend '{self.backend.name}' must return {name} of shape {list(shape)} for a step, but returned {actual}"
                )
        return output

    def _embeds(self, plan: SchedulerOutput, ids: Ints, size: int) -> Tensor | None:
        """Return the input embeddings [1, tokens, d] of a step with `size` tokens before padding. Return None if no
        request sets `embeds`."""
        places, rows = list[Ints](), list[npt.NDArray[np.float32]]()
        start = plan.decode
        for chunk in plan.chunks:
            if chunk.sequence.embeds is not None:
                at, embeddings = chunk.sequence.embeds.within(chunk.start, chunk.stop)
                places.append(start + at)
                rows.append(embeddings)
            start += chunk.stop - chunk.start
        if not any(map(len, rows)):
            return None
        embedded = self.model.embed(self._tensor(ids[None]))
        embedded[0].index_copy_(
            0, self._tensor(np.concatenate(places)), self._tensor(np.concatenate(rows)).to(self.dtype)
        )
        embedded[:, size:] = embedded[:, :1]  # padding tokens copy the first token, as in `step`
        return embedded

    def _score(self, hidden: Tensor, scored: list[tuple[Sequence, int, range]]) -> None:
        """Compute prompt log-probabilities from the hidden states [tokens, d] of a step.

        `scored` lists (sequence, offset, positions to score). Position p of the sequence is token offset + p of the
        step. The offset is negative if an earlier step computed position 0.
        """
        for sequence, first, positions in scored:
            assert sequence.scores is not None
            for start in range(positions.start, positions.stop, SCORED):
                some = range(start, min(start + SCORED, positions.stop))
                places = self._tensor(first + np.arange(some.start, some.stop))
                logprobs = logits_of(self.model, hidden, places).float().log_softmax(-1)
                following = self._tensor(np.array(sequence.tokens[some.start + 1 : some.stop + 1])).unsqueeze(1)
                best = likeliest(logprobs, sequence.scores.top) if sequence.scores.top else [[]] * len(some)
                sequence.scores.add(logprobs.gather(1, following).squeeze(1).tolist(), best)

    def _update_block_table(self, plan: SchedulerOutput, scheduler: Scheduler) -> None:
        """Update the block table of every sequence that may have new blocks."""
        n = plan.decode
        begun = np.flatnonzero(scheduler.rows.position[:n] % BLOCK == 0).tolist()
        fresh = [scheduler.running[row] for row in begun]
        for sequence in (*fresh, *(c.sequence for c in plan.chunks), *(s for s, _ in plan.joined)):
            self.block_table[sequence.slot, : len(sequence.blocks)] = sequence.blocks

    def _metadata(self, plan: SchedulerOutput, slot: Ints, position: Ints, slot_mapping: Ints) -> AttentionMetadata:
        """Return the attention metadata of the step: decoding rows first, then prefill chunks."""
        chunks = plan.chunks
        count = np.array([c.stop - c.start for c in chunks], np.int64)
        query_start_loc = np.concatenate((np.arange(len(slot) + 1), len(slot) + np.cumsum(count)))
        seq_lens = np.append(position + 1, [c.stop for c in chunks]).astype(np.int64)
        rows = np.append(slot, [c.sequence.slot for c in chunks]).astype(np.int64)
        block_table = self.block_table[rows, : (int(seq_lens.max()) - 1) // BLOCK + 1]
        return AttentionMetadata(query_start_loc, seq_lens, block_table, slot_mapping)

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    # ---- sampling

    def _sampling(self, scheduler: Scheduler, n: int) -> SamplingMetadata:
        """Return the sampling parameters and random numbers of the `n` rows."""
        rows, active = scheduler.rows, scheduler.running
        if self._version != scheduler.version or self._settings is None:
            self._settings = Settings.of([s.params for s in active], self.device)
            self._constrained = [(row, s.constraint) for row, s in enumerate(active) if s.constraint]
            self._with_min_tokens = [row for row, s in enumerate(active) if s.barred]
            self._version = scheduler.version
        penalties, seen = self._settings.penalties, None
        if penalties is not None and len(penalties.rows):
            seen = self.counts.of(rows.slot[:n][penalties.rows])
        allowed = self._allowed(active, rows.position[:n])
        return SamplingMetadata(self._settings, uniform(rows.key[:n], rows.position[:n]), seen, allowed)

    def _allowed(self, active: list[Sequence], position: Ints) -> tuple[Ints, Bools] | None:
        """Return the restricted rows and their masks of allowed tokens, or None if no row is restricted.

        A row is restricted by its grammar or by `min_tokens`. A reply shorter than `min_tokens` may end only if its
        grammar allows nothing else.
        """
        masks = {row: mask for row, constraint in self._constrained if (mask := constraint.mask()) is not None}
        for row in self._with_min_tokens:
            sequence = active[row]
            if int(position[row]) + 1 - len(sequence.prompt) < sequence.params.min_tokens:
                continuing = masks[row].copy() if row in masks else np.ones(self.vocab, np.bool_)
                continuing[list(sequence.barred)] = False
                if continuing.any():
                    masks[row] = continuing
        return (np.array(list(masks)), np.stack(list(masks.values()))) if masks else None

    def _keep(self, drawn: SamplerOutput, scheduler: Scheduler) -> Ints:
        """Store the sampled token of each row and return the tokens [rows]."""
        rows, n = scheduler.rows, len(drawn.ids)
        slot, position = rows.slot[:n], rows.position[:n]
        if self.kept.shape[-1]:
            kept = drawn.distribution[:, : self.vocab].isfinite().cpu().numpy()
            self.kept[slot, position + 1] = np.packbits(kept, axis=-1)
        new: Ints = drawn.ids.cpu().numpy()
        if new.min() < 0 or new.max() >= drawn.distribution.shape[1]:
            raise ValueError(
                f"backend '{self.backend.name}' sampled token ids {new.tolist()} from a vocabulary of {self.vocab}"
            )
        new = new.clip(max=self.vocab - 1)  # if logits are NaN, the sampled id may belong to a padding column
        self.ids[slot, position + 1] = new
        self.logprobs[slot, position + 1] = drawn.logprobs.cpu().numpy()
        if self._settings is not None and self._settings.penalties is not None:
            self.counts.tally(slot, new)
        for row, constraint in self._constrained:
            constraint.accept(int(new[row]))
        self._keep_top(drawn.distribution, scheduler.running)
        return new

    def _keep_top(self, logprobs: Tensor, active: list[Sequence]) -> None:
        requesting = [row for row, sequence in enumerate(active) if sequence.params.top_logprobs]
        if not requesting:
            return
        most = max(active[row].params.top_logprobs for row in requesting)
        for row, best in zip(requesting, likeliest(logprobs[requesting], most)):
            self.top[active[row].slot].append(best[: active[row].params.top_logprobs])


class EagerStep:
    """The `StepFunction` of a backend without a fused step: runs the model operation by operation."""

    def __init__(self, model: Decoder) -> None:
        self._model = model

    def __call__(self, given: StepInput) -> StepOutput:
        """Run the forward pass, compute the logits of the last tokens, and sample."""
        output = self._model(given.ids, given.positions, cache=given.cache, inputs_embeds=given.embeds)
        hidden, routing = output.hidden[0], output.routing
        recorded = routing and given.record_experts
        experts = torch.stack([one.indices for one in routing], dim=1) if recorded else None
        if given.sampling is None:
            return StepOutput(hidden, experts, None)
        drawn = self._model.ops.sample(logits_of(self._model, hidden, given.last), given.sampling)
        return StepOutput(hidden, experts, drawn)


def logits_of(model: Decoder, hidden: Tensor, places: Tensor) -> Tensor:
    """Return the logits [places, padded vocab] of the tokens at indices `places`, from hidden states [tokens, d].

    The backend decides the padding of rows and columns. Padding columns hold -inf; padding rows are removed.
    """
    ops, count = model.ops, len(places)
    row_padding = -count % ops.rows.least
    index = torch.cat((places, places.new_zeros(row_padding))) if row_padding else places
    logits = model.logits(hidden.index_select(0, index))[:count]
    column_padding = -logits.shape[-1] % ops.lanes
    return F.pad(logits, (0, column_padding), value=-torch.inf) if column_padding else logits
