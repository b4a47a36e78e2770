"""An engine core: a scheduler, a KV cache and a runner that advance one batch.

An engine has several cores. One thread at a time runs each of them.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rorqual.engine.kv_cache.disk import SECRET_BYTES, DiskStore, load_secret
from rorqual.engine.kv_cache.manager import KVCacheManager
from rorqual.engine.runner import Runner, Sampled
from rorqual.engine.scheduler import Scheduler
from rorqual.engine.sequence import Sequence
from rorqual.engine.weights import Weights
from rorqual.model import Decoder
from rorqual.ops.backends import Backend
from rorqual.ops.paged import BLOCK


@dataclass(frozen=True)
class Finished:
    """A finished sequence and its sampled tokens."""

    sequence: Sequence
    sampled: Sampled
    stopped: bool
    """Whether a stop token, a stop string or its grammar ended it, not its length limit."""
    lost: bool = False
    """Whether a logit was NaN or infinite, so that the last token is meaningless."""


Drawn = tuple[Sequence, int, float, tuple[tuple[int, float], ...]]
"""A sequence, its newest token, that token's log-probability, and the likeliest tokens if the request asks for them."""


@dataclass(frozen=True)
class CoreConfig:
    """Sizes of an engine core. `cache_bytes` is the size of the KV cache in memory. `folder` holds blocks on disk, up
    to `disk_bytes`; None turns the disk cache off. `Scheduler` documents `step_tokens` and `patience`."""

    slots: int
    max_len: int
    cache_bytes: int
    step_tokens: int
    patience: float = 0.0
    folder: Path | None = None
    disk_bytes: int = 4 << 30

    def blocks(self, block_bytes: int, *, reuse: bool) -> int:
        """Return how many blocks of `block_bytes` the KV cache has, including the padding block 0.

        `cache_bytes` sets the limit. The cache has no more blocks than all slots can fill, or with `reuse` no more than
        `MOST_BLOCKS` if that is larger.
        """
        affordable = self.cache_bytes // max(block_bytes, 1)
        usable = self.slots * -(-self.max_len // BLOCK)
        return 1 + max(1, min(affordable, max(usable, MOST_BLOCKS) if reuse else usable))


MOST_BLOCKS = 16384
"""With a prefix cache, the KV cache may have this many blocks even if the running sequences can fill fewer."""


class EngineCore:
    """Advances its sequences by one token per `step`."""

    def __init__(
        self,
        model: Decoder,
        size: CoreConfig,
        stop_ids: Iterable[int],
        weights: Weights,
        backend: Backend,
        *,
        record_experts: bool,
        record_kept: bool = False,
        reuse: bool = False,
    ) -> None:
        blocks = size.blocks(Runner.block_bytes(model), reuse=reuse)
        self.runner = Runner(
            model, size.slots, size.max_len, blocks, backend,
            record_experts=record_experts, record_kept=record_kept,
        )  # fmt: skip
        self.weights, fingerprint = weights, weights.look()
        secret, store = secrets.token_bytes(SECRET_BYTES), None  # not from numpy, whose numbers a known seed reveals
        if size.folder is not None:
            secret = load_secret(size.folder)
            store = DiskStore(size.folder, size.disk_bytes, secret, fingerprint)
        self.kv_cache = KVCacheManager(
            blocks, secret, fingerprint, self.runner.cache.read, self.runner.cache.write, store
        )
        self.kv_cache.look, self._looked = self._look, False
        self.scheduler = Scheduler(
            size.slots, self.kv_cache, self.runner, step_tokens=size.step_tokens, patience=size.patience
        )
        self.stop_ids = np.array(sorted(stop_ids), np.int64)
        self.drawn: list[Drawn] = []
        """Tokens that the last step drew."""

    @property
    def idle(self) -> bool:
        """Whether no sequence runs or waits."""
        return self.scheduler.idle

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue sequences."""
        self.runner.check()
        self.scheduler.submit(sequences)

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Run one step and return the sequences that finished.

        An exception, also a Ctrl-C, leaves the step unfinished. The caller must then `reset` the core.
        """
        self.drawn, self._looked = [], False
        scheduler, runner = self.scheduler, self.runner
        plan = scheduler.schedule()
        for sequence in plan.admitted:
            runner.place(sequence)
        if plan.empty:
            return []
        tokens = runner.step(plan, scheduler)
        if runner.holds_non_finite:
            self.kv_cache.clear = runner.cache.clear
        for chunk in plan.chunks:
            self.kv_cache.cache_blocks(chunk.sequence, chunk.stop)
        if not len(tokens):
            return []
        done = scheduler.advance(tokens, self.stop_ids)
        lengths = (scheduler.rows.position[: len(tokens)] + 1).tolist()
        logprobs, best = runner.newest(scheduler)
        for row, sequence in enumerate(scheduler.running):
            if sequence.scores is not None and sequence.scores.lost:
                logprobs[row] = math.nan
        lost = [row for row, logprob in enumerate(logprobs) if not math.isfinite(logprob)]
        if lost:
            done = np.union1d(done, np.array(lost, np.int64))
        self.drawn = list(zip(scheduler.running, tokens.tolist(), logprobs, best))
        if not len(done):
            return []
        finished = []
        for row in done.tolist():
            sequence = scheduler.running[row]
            ends = sequence.halted or (not sequence.params.ignore_eos and int(tokens[row]) in self.stop_ids)
            finished.append(Finished(sequence, runner.take(sequence, lengths[row]), bool(ends), row in lost))
        scheduler.release(done)
        return finished

    def _look(self) -> None:
        """Compare the weights by value, at most once a step, before cached blocks are reused or hashed."""
        if not self._looked:
            self._looked = True
            self._rename(self.weights.look(contents=True))

    def _rename(self, fingerprint: bytes) -> None:
        if fingerprint != self.kv_cache.fingerprint:
            self.close()
            self.kv_cache.store = None
            self.scheduler.renew(fingerprint)

    def reset(self) -> None:
        """Drop all running and waiting sequences and all cached blocks in memory, in whatever state they are."""
        self.scheduler.reset()
        self.drawn = []
        if self.runner.holds_non_finite:
            self.kv_cache.clear = self.runner.cache.clear

    def cancel(self, request_id: int) -> None:
        """Cancel the request `request_id` and free its slots and blocks at once."""
        self._looked = False
        self.scheduler.cancel(request_id)

    def renew(self, fingerprint: bytes, backend: Backend) -> None:
        """Invalidate everything cached under the old weights and compute with `backend` from now on.

        This also closes the disk cache, whose folder holds blocks of the old weights only.
        """
        self._rename(fingerprint)
        self.runner.renew(backend)

    def request_ids(self) -> set[int]:
        """Return the ids of all running and waiting requests."""
        return self.scheduler.request_ids()

    def close(self) -> None:
        """Write the pending blocks to the disk cache."""
        if self.kv_cache.store is not None:
            self.kv_cache.store.close()
