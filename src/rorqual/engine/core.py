"""An engine core: a scheduler, a KV cache and a model runner, which together run one batch.

An engine has one or more cores. At most one thread runs a core at a time.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import torch

from rorqual.engine.config import EngineConfig
from rorqual.engine.histories import SampledReply
from rorqual.engine.kv_cache.disk import SECRET_BYTES, DiskStore
from rorqual.engine.kv_cache.manager import KVCacheManager
from rorqual.engine.runner import ModelRunner
from rorqual.engine.scheduler import Scheduler
from rorqual.engine.sequence import Sequence
from rorqual.model import Decoder
from rorqual.model.adapter.bank import AdapterBank
from rorqual.ops.backends import Backend
from rorqual.ops.paged import BLOCK


@dataclass(frozen=True)
class FinishedSequence:
    """A finished sequence and its sampled tokens."""

    sequence: Sequence
    sampled: SampledReply
    stopped: bool
    """`stopped` is True if a stop token, a stop string or the grammar ended the sequence. `stopped` is False if the sequence
    reached its length limit."""
    has_non_finite: bool = False
    """Whether a logit of the sequence was NaN or infinite. If `has_non_finite` is True, the sequence's last token is
    meaningless."""

    @property
    def validation(self) -> Future[str] | None:
        """The future error of an answer that is validated in another process, or None without a validation."""
        return None if self.sequence.constraint is None else self.sequence.constraint.validation


SampledToken = tuple[Sequence, int, float, tuple[tuple[int, float], ...]]
"""A sequence, its new token, the token's log-probability, and the most likely tokens if the request sets
`top_logprobs`.
"""


MOST_BLOCKS = 16384
"""Maximum number of blocks in a KV cache with prefix caching. If all slots together can fill more than `MOST_BLOCKS` blocks,
the maximum is the number of blocks that all slots can fill."""


def number_of_blocks(config: EngineConfig, max_len: int, block_bytes: int, *, reuse: bool) -> int:
    """Return how many blocks of `block_bytes` bytes the KV cache has, including the padding block 0.

    The number of blocks has two limits: `config.cache_bytes`, and the number of blocks that all slots together can fill. With
    `reuse`, the limit from the slots is at least `MOST_BLOCKS`.
    """
    affordable = config.cache_bytes // max(block_bytes, 1)
    usable = config.slots * -(-max_len // BLOCK)
    return 1 + max(1, min(affordable, max(usable, MOST_BLOCKS) if reuse else usable))


class EngineCore:
    """Continuous batching over one KV cache: each `step` prefills prompt chunks and samples one token per decoding
    sequence.

    `reuse` enables the prefix cache, in memory and in `cache_dir`.
    """

    def __init__(
        self,
        model: Decoder,
        config: EngineConfig,
        max_len: int,
        stop_ids: Iterable[int],
        fingerprint: bytes,
        backend: Backend,
        adapters: AdapterBank,
        *,
        reuse: bool = False,
    ) -> None:
        blocks = number_of_blocks(config, max_len, ModelRunner.block_bytes(model), reuse=reuse)
        self.runner = ModelRunner(
            model, config.slots, max_len, blocks, backend, adapters,
            record_experts=config.record_experts, record_kept=config.record_kept,
        )  # fmt: skip
        folder = config.cache_dir if reuse else None
        store = None if folder is None else DiskStore(Path(folder), config.disk_bytes, fingerprint)
        # numpy's random numbers are predictable
        secret = secrets.token_bytes(SECRET_BYTES) if store is None else store.secret
        self.kv_cache = KVCacheManager(
            blocks, secret, fingerprint, self.runner.cache.read, self.runner.cache.write, store
        )
        self.scheduler = Scheduler(config.slots, self.kv_cache, self.runner.histories, step_tokens=config.step_tokens)
        self.stop_ids = np.array(sorted(stop_ids), np.int64)
        self.sampled: list[SampledToken] = []
        """The tokens that the last call of `step` sampled."""
        self.steps = 1
        """The number of steps of that call."""

    @property
    def idle(self) -> bool:
        """Whether the engine core has no running and no queued sequences."""
        return self.scheduler.idle

    def submit(self, sequences: list[Sequence]) -> None:
        """Add `sequences` to the request queue of the engine core."""
        self.scheduler.submit(sequences)

    @torch.inference_mode()
    def step(self, most: int = 1) -> list[FinishedSequence]:
        """Run one engine step and return the sequences that finished in this step. With `most`, run up to `most` decoding steps if no
        sequence finishes before the last of them. `sampled` then has the tokens of all steps, in their order.

        If `step` raises an exception, including KeyboardInterrupt, the step is incomplete and the caller must call `reset`.
        """
        self.sampled, self.steps = [], 1
        scheduler, runner = self.scheduler, self.runner
        plan = scheduler.schedule()
        for sequence in plan.admitted:
            runner.prepare_slot(sequence)
        if plan.empty:
            return []
        steps = scheduler.reserve_steps(most) if most > 1 and not plan.chunks and runner.decodes_ahead else 1
        if steps == 1:
            tokens = runner.step(plan, scheduler)
        else:
            ids, logprobs = runner.decode(steps, scheduler, self.stop_ids)
            tokens, self.steps = ids[-1], len(ids)
            for earlier, known in zip(ids[:-1].tolist(), logprobs.tolist()):
                self.sampled += zip(scheduler.running, earlier, known, repeat(()))
        if runner.holds_non_finite:
            self.kv_cache.clear = runner.cache.clear
        for chunk in plan.chunks:
            self.kv_cache.cache_blocks(chunk.sequence, chunk.stop)
        if not len(tokens):
            return []
        done = scheduler.advance_rows(tokens, self.stop_ids)
        lengths = (scheduler.rows.position[: len(tokens)] + 1).tolist()
        newest, best = runner.histories.newest_logprobs(scheduler.running, scheduler.rows)
        for row, sequence in enumerate(scheduler.running):
            if sequence.scores is not None and sequence.scores.has_non_finite:
                newest[row] = math.nan
        lost = [row for row, logprob in enumerate(newest) if not math.isfinite(logprob)]
        if lost:
            done = np.union1d(done, np.array(lost, np.int64))
        self.sampled += zip(scheduler.running, tokens.tolist(), newest, best)
        if not len(done):
            return []
        finished = []
        for row in done.tolist():
            sequence = scheduler.running[row]
            ends = sequence.halted or (not sequence.params.ignore_eos and int(tokens[row]) in self.stop_ids)
            finished.append(
                FinishedSequence(sequence, runner.finished_reply(sequence, lengths[row]), bool(ends), row in lost)
            )
        scheduler.release_rows(done)
        return finished

    def reset(self) -> None:
        """Drop all running and queued sequences and all cached blocks in memory. `reset` works in any state of the engine core,
        including after a failed step."""
        self.scheduler.reset()
        self.sampled = []
        if self.runner.holds_non_finite:
            self.kv_cache.clear = self.runner.cache.clear

    def cancel(self, request_id: int) -> None:
        """Cancel the request `request_id` and free its slots and blocks immediately."""
        self.scheduler.cancel(request_id)

    def apply_weight_change(self, fingerprint: bytes, backend: Backend) -> None:
        """Invalidate all cached blocks after a weight change, and use `backend` for all later steps.

        The disk cache is closed, because the disk cache's folder belongs to the old weights.
        """
        self.close()
        self.kv_cache.store = None
        self.scheduler.invalidate_blocks(fingerprint)
        self.runner.bind_backend(backend)

    def request_ids(self) -> set[int]:
        """Return the ids of the engine core's running and queued requests."""
        return self.scheduler.request_ids()

    def close(self) -> None:
        """Write the pending blocks to the disk cache, then close the disk cache."""
        if self.kv_cache.store is not None:
            self.kv_cache.store.close()
