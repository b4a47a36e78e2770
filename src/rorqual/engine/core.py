"""One engine core: a scheduler, its blocks and a runner, one batch in flight. An engine has several, each run by one thread at a time."""

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
    """A sequence that ended, with what was drawn. `stopped`: by a token that ends it, not by its length; `lost`: by a logit that is not a
    number, so that what was drawn last means nothing."""

    sequence: Sequence
    sampled: Sampled
    stopped: bool
    lost: bool = False


Drawn = tuple[Sequence, int, float, tuple[tuple[int, float], ...]]
"""A sequence, its newest token, that token's log-probability, and the likeliest tokens where these were asked for."""


@dataclass(frozen=True)
class CoreConfig:
    """The sizes of an engine core. `cache_bytes`: of keys and values. `folder`: of blocks on disk (None: nowhere), up to `disk_bytes`.
    `step_tokens` and `patience`: see `Scheduler`."""

    slots: int
    max_len: int
    cache_bytes: int
    step_tokens: int
    patience: float = 0.0
    folder: Path | None = None
    disk_bytes: int = 4 << 30

    def blocks(self, block_bytes: int, *, reuse: bool) -> int:
        """Blocks of a cache: what `cache_bytes` affords, at most what all slots can use, or with `reuse` as many as that."""
        affordable = self.cache_bytes // max(block_bytes, 1)
        usable = self.slots * -(-self.max_len // BLOCK)
        return 1 + max(1, min(affordable, max(usable, MOST_BLOCKS) if reuse else usable))


MOST_BLOCKS = 16384
"""Blocks that are kept at most for prompts to come, where sequences need fewer."""


class EngineCore:
    """Advances its sequences by one token a `step`."""

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
        secret, store = secrets.token_bytes(SECRET_BYTES), None  # not numpy's numbers, which a seed makes known
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
        """What the last step drew."""

    @property
    def idle(self) -> bool:
        return self.scheduler.idle

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue sequences."""
        self.runner.check()
        self.scheduler.submit(sequences)

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Run one step, and return the sequences that ended.

        What is raised in here, be it a Ctrl-C, leaves a step half done: whoever calls must `reset` then.
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
        """Compare the weights, value by value: blocks are about to be used again, or named. Once a step is enough."""
        if not self._looked:
            self._looked = True
            self._rename(self.weights.look(contents=True))

    def _rename(self, fingerprint: bytes) -> None:
        if fingerprint != self.kv_cache.fingerprint:
            self.close()
            self.kv_cache.store = None
            self.scheduler.renew(fingerprint)

    def reset(self) -> None:
        """Forget everything that runs, waits or was kept in memory, whatever state it is in."""
        self.scheduler.reset()
        self.drawn = []
        if self.runner.holds_non_finite:
            self.kv_cache.clear = self.runner.cache.clear

    def cancel(self, request_id: int) -> None:
        """Forget the request `request_id`; its slots and blocks are free at once."""
        self._looked = False
        self.scheduler.cancel(request_id)

    def renew(self, fingerprint: bytes, backend: Backend) -> None:
        """The weights have changed: nothing that was cached of the old ones serves again, and the folder is for them alone. From now on
        `backend` computes."""
        self._rename(fingerprint)
        self.runner.renew(backend)

    def request_ids(self) -> set[int]:
        """Of all that runs or waits."""
        return self.scheduler.request_ids()

    def close(self) -> None:
        """What is on its way to the folder is written."""
        if self.kv_cache.store is not None:
            self.kv_cache.store.close()
