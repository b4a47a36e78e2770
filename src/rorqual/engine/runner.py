"""Run one forward pass over all scheduled prefill and decode tokens, and sample the new tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.engine.eager_step import EagerStep, logits_at_positions
from rorqual.engine.histories import SampledReply, SequenceHistories
from rorqual.engine.kv_cache.paged import PagedCache, StepCache, cache_bytes_per_token
from rorqual.engine.sampler import Sampler
from rorqual.engine.scheduler import Scheduler, SchedulerOutput
from rorqual.engine.sequence import Ints, Sequence
from rorqual.model import Decoder
from rorqual.model.adapter.bank import AdaptedRows, AdapterBank
from rorqual.ops.backends import Backend
from rorqual.ops.backends.attention import PAD, AttentionMetadata, AttentionPlan
from rorqual.ops.backends.step import DecodingFunction, StepFunction, StepInput, StepOutput
from rorqual.ops.paged import BLOCK
from rorqual.ops.sampling import likeliest_tokens


def moe_layer_and_expert_counts(model: Decoder) -> tuple[int, int, int]:
    """Return three counts: MoE layers, experts per token, and possible expert ids. For a dense model, the numbers of MoE
    layers, experts per token and expert ids are 0.

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
    return len(ffns), widths.pop(), max(ffn.n_router_choices() for ffn in ffns)


Logprobs = npt.NDArray[np.float32]
SCORED = 64
"""Maximum number of prompt positions whose logits are in memory at the same time."""


def pad_row_count(tokens: int, rows: int) -> int:
    """Return the number of tokens of a step, rounded up to a multiple of `rows`.

    Token numbers above 32 are rounded up to a multiple of 16, or of `rows` if `rows` is larger than 16. Token numbers above 256
    are rounded up to a multiple of 64.

    Rounding up keeps the number of distinct batch sizes small, because oneDNN builds primitives for each batch size.
    """
    multiple = rows if tokens <= 32 else max(rows, 16) if tokens <= 256 else 64
    return -(-tokens // multiple) * multiple


class ModelRunner:
    """Runs the model on the batch of an engine core. The runner has a KV cache with `blocks` blocks, and the histories of
    `slots` sequences of at most `max_len` tokens."""

    def __init__(
        self,
        model: Decoder,
        slots: int,
        max_len: int,
        blocks: int,
        backend: Backend,
        adapters: AdapterBank,
        *,
        record_experts: bool,
        record_kept: bool = False,
    ) -> None:
        self._source = model
        self._adapters, self._adapted_rows = adapters, list[AdaptedRows]()
        self.bind_backend(backend)
        self.layers, self.k, self._choices = moe_layer_and_expert_counts(model) if record_experts else (0, 0, 0)
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
        vocab = model.config.vocab_size
        self.histories = SequenceHistories(slots, max_len, vocab, record_kept=record_kept)
        self.sampler = Sampler(self.histories, vocab, self.device)
        self.block_table = np.zeros((slots, -(-max_len // BLOCK)), np.int64)
        self._plan: AttentionPlan | None = None
        self.holds_non_finite = False
        """Whether a NaN or infinity was ever written to the KV cache."""

    def bind_backend(self, backend: Backend) -> None:
        """Bind the model to `backend` again, after the model's modules, weights or adapters have changed."""
        self.backend, self.model = backend, self._adapters.bind(backend.bind(self._source), self._adapted_rows)
        self._step: StepFunction = backend.compile(self.model) or EagerStep(self.model)
        self._decoding = self._step if isinstance(self._step, DecodingFunction) else None

    @staticmethod
    def block_bytes(model: Decoder) -> int:
        """Return the size of one KV-cache block in bytes."""
        return round(cache_bytes_per_token(model.config, model.embed_tokens.weight.dtype) * BLOCK)

    # ---- sequences

    def prepare_slot(self, sequence: Sequence) -> None:
        """Prepare the slot of a newly admitted sequence."""
        self.histories.load_sequence(sequence)
        self.sampler.start_token_counts(sequence)

    def finished_reply(self, sequence: Sequence, length: int) -> SampledReply:
        """Return the reply of a finished sequence of `length` tokens, prompt and reply together."""
        experts = None
        if self.layers:
            blocks = torch.tensor(sequence.blocks, device=self.device)
            experts = self.cache.experts.index_select(0, blocks).flatten(0, 1)[: length - 1].cpu()
        return self.histories.sampled_reply(sequence, length, experts)

    # ---- a step

    def step(self, plan: SchedulerOutput, scheduler: Scheduler) -> Ints:
        """Run the model on the scheduled tokens, sample one token per row, store the sampled tokens and return their ids
        [rows]."""
        rows, n = scheduler.rows, plan.decode
        slot, position = rows.slot[:n], rows.position[:n]
        self._update_block_table(plan, scheduler)
        chunks = plan.chunks
        size = n + sum(c.stop - c.start for c in chunks)
        ids = np.zeros(pad_row_count(size, self.backend.rows.least), np.int64)
        positions, slot_mapping = np.zeros_like(ids), np.full_like(ids, PAD)
        ids[:n], positions[:n] = self.histories.ids[slot, position], position
        slot_mapping[:n] = self.block_table[slot, position // BLOCK] * BLOCK + position % BLOCK
        stop = n
        ends, scored = [], list[tuple[Sequence, int, range]]()
        for chunk in chunks:
            start, stop = stop, stop + chunk.stop - chunk.start
            if (scores := chunk.sequence.scores) is not None:
                scored.append((chunk.sequence, start - chunk.start, scores.positions_to_score(chunk.start, chunk.stop)))
            chunk_positions = np.arange(chunk.start, chunk.stop)
            ids[start:stop] = self.histories.ids[chunk.sequence.slot, chunk.start : chunk.stop]
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
        embeds = self._input_embeddings(plan, ids, size)
        last = [*range(n), *(ends[chunk] for _, chunk in plan.joined)]
        sampling = self.sampler.metadata(scheduler, len(last)) if last else None
        step_input = StepInput(
            self._tensor(ids[None]),
            self._tensor(positions[None]),
            cache,
            self._tensor(np.array(last, np.int64)),
            sampling,
            embeds,
            self.layers > 0,
        )
        # Padding tokens copy the first token, so they have its adapter.
        sequences = [*scheduler.running[:n], *(c.sequence for c in chunks)]
        counts = [*[1] * n, *(c.stop - c.start for c in chunks), len(ids) - size]
        with self._adapted([*sequences, sequences[0]], counts):
            output = self._check_output(self._step(step_input), step_input)
        self._store_hidden_and_experts(output, slot_mapping)
        self._score_prompts(output.hidden, scored)
        new = (
            np.zeros(0, np.int64)
            if output.sampled is None
            else self.sampler.store_sampled_tokens(output.sampled, scheduler, self.backend.name)
        )
        if plan.copies:
            self.cache.copy_blocks(*zip(*plan.copies))
        return new

    @property
    def decodes_ahead(self) -> bool:
        """Whether `decode` can be called."""
        return self._decoding is not None and not self.histories.kept.shape[-1]

    def decode(self, steps: int, scheduler: Scheduler, stops: Ints) -> tuple[Ints, Logprobs]:
        """Run up to `steps` decoding steps of all rows in one call of the backend, until a row ends. Store the sampled tokens, advance
        the rows by all steps but the last, and return the ids and log-probabilities that were sampled [steps, rows]."""
        assert self._decoding is not None
        rows, n = scheduler.rows, len(scheduler.running)
        slot = rows.slot[:n]
        for sequence in scheduler.running:
            self.block_table[sequence.slot, : len(sequence.blocks)] = sequence.blocks
        positions = rows.position[:n] + np.arange(steps)[:, None]
        slots = self.block_table[slot, positions // BLOCK] * BLOCK + positions % BLOCK
        table = self.block_table[slot, : int(positions.max()) // BLOCK + 1]
        metadata = AttentionMetadata(np.arange(n + 1), positions[-1] + 1, table, slots.ravel())
        self._plan = self.backend.attention.plan(metadata, self.device, self._plan)
        step_input = StepInput(
            self._tensor(self.histories.ids[slot, rows.position[:n]][None]),
            self._tensor(positions.reshape(1, -1)),
            StepCache(self.cache, self._plan),
            self._tensor(np.arange(n)),
            self.sampler.metadata(scheduler, n, steps),
            None,
            self.layers > 0,
        )
        with self._adapted(scheduler.running, [1] * n):
            output = self._decoding.decode(step_input, stops, rows.ignore_eos[:n])
        assert output.sampled is not None
        ids, logprobs = (part.view(-1, n).cpu().numpy() for part in (output.sampled.ids, output.sampled.logprobs))
        done = len(ids)
        self._store_hidden_and_experts(output, slots[:done].ravel())
        self.histories.ids[slot, positions[:done] + 1] = ids
        self.histories.logprobs[slot, positions[:done] + 1] = logprobs
        rows.position[:n] += done - 1
        return ids, logprobs

    @contextmanager
    def _adapted(self, sequences: Iterable[Sequence], counts: list[int]) -> Iterator[None]:
        """Apply the adapter of each sequence to its tokens, of which `counts` has the numbers."""
        self._adapted_rows[:] = self._adapters.rows_of([one.adapter for one in sequences], counts)
        try:
            yield
        finally:
            self._adapted_rows.clear()

    def _store_hidden_and_experts(self, output: StepOutput, slots: Ints) -> None:
        """Note whether the hidden states are finite, and cache the chosen experts."""
        self.holds_non_finite |= not math.isfinite(float(output.hidden.sum()))
        if output.experts is not None and self.layers:
            chosen = self._check_expert_ids(output.experts).to(self.cache.experts.dtype)
            self.cache.experts.flatten(0, 1).index_copy_(0, self._tensor(slots.clip(min=0)), chosen)

    def _check_expert_ids(self, experts: Tensor) -> Tensor:
        """Return the expert ids `experts` unchanged. Raises ValueError if an expert id is `n_router_choices()` or higher,
        because the expert id may then be too large for the dtype of `PagedCache.experts`."""
        if (highest := int(experts.max())) >= self._choices:
            raise ValueError(
                f"a feed-forward network chose expert {highest}, but its `n_router_choices()` is {self._choices}"
            )
        return experts

    def _check_output(self, output: StepOutput, step_input: StepInput) -> StepOutput:
        """Return the output of an engine step unchanged. Raises ValueError if the backend left out a tensor of the output, or
        if a tensor has a wrong shape."""
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

    def _input_embeddings(self, plan: SchedulerOutput, ids: Ints, size: int) -> Tensor | None:
        """Return the input embeddings [1, tokens, d] of a step with `size` tokens before padding. Return None if no request in
        the step sets `embeds`."""
        places, rows = list[Ints](), list[npt.NDArray[np.float32]]()
        start = plan.decode
        for chunk in plan.chunks:
            if chunk.sequence.embeds is not None:
                at, embeddings = chunk.sequence.embeds.embeddings_in_range(chunk.start, chunk.stop)
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

    def _score_prompts(self, hidden: Tensor, scored: list[tuple[Sequence, int, range]]) -> None:
        """Compute prompt log-probabilities from the hidden states [tokens, d] of a step.

        `scored` lists (sequence, offset, positions to score). Position p of the sequence is the token with the index offset + p
        in the step. The offset is negative if an earlier step computed position 0 of the sequence.
        """
        for sequence, first, positions in scored:
            assert sequence.scores is not None
            for start in range(positions.start, positions.stop, SCORED):
                some = range(start, min(start + SCORED, positions.stop))
                places = self._tensor(first + np.arange(some.start, some.stop))
                logprobs = logits_at_positions(self.model, hidden, places).float().log_softmax(-1)
                following = self._tensor(np.array(sequence.tokens[some.start + 1 : some.stop + 1])).unsqueeze(1)
                best = likeliest_tokens(logprobs, sequence.scores.top) if sequence.scores.top else [[]] * len(some)
                sequence.scores.add(logprobs.gather(1, following).squeeze(1).tolist(), best)

    def _update_block_table(self, plan: SchedulerOutput, scheduler: Scheduler) -> None:
        """Update the block table of every sequence that may have new blocks."""
        n = plan.decode
        begun = np.flatnonzero(scheduler.rows.position[:n] % BLOCK == 0).tolist()
        fresh = [scheduler.running[row] for row in begun]
        for sequence in (*fresh, *(c.sequence for c in plan.chunks), *(s for s, _ in plan.joined)):
            self.block_table[sequence.slot, : len(sequence.blocks)] = sequence.blocks

    def _metadata(self, plan: SchedulerOutput, slot: Ints, position: Ints, slot_mapping: Ints) -> AttentionMetadata:
        """Return the attention metadata of the step, with decoding rows first, then prefill chunks."""
        chunks = plan.chunks
        count = np.array([c.stop - c.start for c in chunks], np.int64)
        query_start_loc = np.concatenate((np.arange(len(slot) + 1), len(slot) + np.cumsum(count)))
        seq_lens = np.append(position + 1, [c.stop for c in chunks]).astype(np.int64)
        rows = np.append(slot, [c.sequence.slot for c in chunks]).astype(np.int64)
        block_table = self.block_table[rows, : (int(seq_lens.max()) - 1) // BLOCK + 1]
        return AttentionMetadata(query_start_loc, seq_lens, block_table, slot_mapping)

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)
