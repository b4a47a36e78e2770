"""Random schedules of one engine, and what each request answers alone: for tests, and by the thousand for `scripts/same_bits.py`.

Every schedule forces what could change an answer: requests that come and go at random steps, prompts cut into chunks, slots and blocks
too few, so that somebody steps back, prompts found in the cache in part, a neighbour that is cancelled, and a second engine that finds the
blocks of the first on disk. All of it is counted from outside.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from consistency import check_scheduler
from trained import CONTEXT, text

from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.runner import ModelRunner
from rorqual.engine.sequence import Sequence
from rorqual.model import Decoder
from rorqual.ops.paged import BLOCK

LONG = 2
"""Which member of a family is made to be cancelled."""
ENDLESS = 5000
FORCED = ("preempted", "partly_hit", "cancelled", "restored")
HOW: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 1.0, "min_p": 0.05, "top_logprobs": 3},
    {"temperature": 0.8, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"repetition_penalty": 1.2, "top_logprobs": 2},
    {"temperature": 1.1, "logit_bias": ((40, 2.0), (60, -5.0)), "top_p": 0.95, "top_k": 40},
    {"temperature": 1.0, "stop": ("=", ".\n")},
    {"temperature": 1.0, "stop_token_ids": (23, 30)},
)


@dataclass
class Pool:
    """Requests of one model, and their answers alone. families[i]: numbers of requests whose prompts begin with one stem."""

    model: Decoder
    pack: bool
    requests: list[Request]
    families: list[list[int]]
    backend: str = "torch-invariant"
    chat: ChatFormat = field(default_factory=lambda: chat_format(Tokenizer.byte_level()))
    answers: dict[int, list[Completion]] = field(default_factory=dict)

    @property
    def crowd(self) -> int:
        """Of a short request that goes on for a while."""
        return len(self.requests) - 1

    def engine(self, **options: Any) -> Engine:
        """An engine of one core. With `pack` every linear map is packed, however small."""
        with patch("rorqual.ops.backends.packed.SMALLEST", 1):
            own = {"engine_cores": 1, "pack": self.pack, "record_kept": True, "backend": self.backend}
            return Engine.of(self.model, self.chat.tokenizer, self.chat, **own | options)

    def alone(self, number: int) -> list[Completion]:
        """The answers of one request, each sample by itself, in an engine that has done nothing before and keeps nothing."""
        if number not in self.answers:
            request = replace(self.requests[number], reuse=False, tenant="", priority=0)
            self.answers[number] = self.engine(slots=1).generate([request])[0]
        return self.answers[number]


def make_pool(
    model: Decoder,
    seed: int,
    *,
    pack: bool = False,
    stems: int = 3,
    each: int = 5,
    backend: str = "torch-invariant",
) -> Pool:
    """`stems` times `each` requests: the stem whole, and prompts that leave it somewhere; replies of 1 to 40 tokens."""
    rng, tokenizer = random.Random(seed), Tokenizer.byte_level()
    requests: list[Request] = []
    families = []
    for _ in range(stems):
        stem = tokenizer.encode(text(rng, 460))
        length = rng.randrange(2 * BLOCK + 2, rng.choice((3 * BLOCK, 430)))
        family = []
        for member in range(each):
            kept, tail = length, 0
            if member == 1:  # a hit in part: what follows fills a block and more
                kept, tail = rng.randrange(BLOCK, length - 1), rng.randrange(BLOCK + 1, 80)
            elif member:
                kept = min(length - 1, rng.choice((BLOCK, BLOCK + 9, rng.randrange(length))))
                tail = rng.choice((1, 2, 3, 20, 64, 70))
            prompt = stem[:kept] + tokenizer.encode(text(rng, 90))[:tail]
            how, new = rng.choice(HOW), rng.choice((1, 3, 8, 16, 24))
            if member == LONG:  # one that does not end by itself
                how, new = rng.choice(HOW[:-2]), 40
            params = SamplingParams(
                max_tokens=min(8 if member == 0 else new, CONTEXT - len(prompt)),
                seed=rng.randrange(2**63),
                n=1 if member == LONG else rng.choice((1, 1, 1, 2, 3)),
                ignore_eos=member == LONG or rng.random() < 0.5,
                **how,
            )
            family.append(len(requests))
            requests.append(Request(prompt_ids=tuple(prompt), params=params))
        families.append(family)
    crowd = SamplingParams(max_tokens=40, ignore_eos=True, temperature=1.0)
    requests.append(Request(prompt_ids=tuple(tokenizer.encode("2 + ")), params=crowd))
    return Pool(model, pack, requests, families, backend)


class Wrong(AssertionError):
    """An answer that is not the one computed alone, or a law that does not hold."""


@dataclass
class Phase:
    """One engine at work. `known`: whose ids were fed, here or in the engine before it on the same folder, by (engine, request_id, sample)."""

    pool: Pool
    engine: Engine
    known: dict[tuple[int, int, int], tuple[str, list[int]]]
    counts: Counter[str]
    numbers: dict[int, int] = field(default_factory=dict)  # of the request, by request_id
    asked: dict[int, Request] = field(default_factory=dict)
    drawn: dict[tuple[int, int], list[tuple[int, float]]] = field(default_factory=dict)
    hits: dict[int, int] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    placed: Counter[tuple[int, int]] = field(default_factory=Counter)
    checked: int = 0

    def submit(self, number: int, **how: Any) -> int:
        request = replace(self.pool.requests[number], **how)
        request_id = self.engine.submit(request)
        self.numbers[request_id], self.asked[request_id] = number, request
        for sample in range(request.params.n):
            self.known[id(self), request_id, sample] = request.tenant, list(request.prompt_ids or ())
        return request_id

    def __post_init__(self) -> None:
        runner = self.engine._cores[0].runner
        place = runner.prepare_slot

        def counting(sequence: Sequence) -> None:
            self.placed[sequence.request_id, sequence.sample] += 1
            place(sequence)

        runner.prepare_slot = counting  # type: ignore[method-assign]

    def close(self) -> None:
        """Nobody is preempted but who then has a slot again; nor unless the engine says so, too."""
        again = sum(times - 1 for times in self.placed.values())
        self.counts["preempted"] += min(again, int(self.engine.stats()["preemptions"]))
        self.engine.close()

    def seated(self) -> set[tuple[int, int]]:
        scheduler = self.engine._cores[0].scheduler
        return {(s.request_id, s.sample) for s in (*scheduler.running, *scheduler.prefilling)}

    def cancel(self, request_id: int) -> None:
        self.counts["cancelled"] += any(t == request_id for t, _ in self.seated())
        self.engine.cancel(request_id)
        self.gone.add(request_id)
        check_scheduler(self.engine._cores[0].scheduler)

    def step(self) -> set[int]:
        """One step, with everything that must hold after it; the request_ids that are done."""
        scheduler = self.engine._cores[0].scheduler
        deltas = self.engine.step()
        check_scheduler(scheduler)
        ended = {d.request_id for d in deltas if d.completion is not None}
        for d in deltas:
            self.drawn.setdefault((d.request_id, d.sample), []).append((d.token, d.logprob))
            self.known[id(self), d.request_id, d.sample][1].append(d.token)
            self.hits[d.request_id] = max(self.hits.get(d.request_id, 0), d.hit)
            if d.completion is not None:
                self._same(d.request_id, d.sample, d.completion)
        return ended - scheduler.request_ids()

    def _same(self, request_id: int, sample: int, got: Completion) -> None:
        expected = self.pool.alone(self.numbers[request_id])[sample]
        differ = differences(got, expected)
        if differ:
            request = self.asked[request_id]
            raise Wrong(f"request {self.numbers[request_id]}, sample {sample} ({request.params}): {differ}")
        if self.drawn[request_id, sample] != list(zip(got.token_ids, got.logprobs)):
            raise Wrong("what was streamed is not what was recorded")
        self.checked += 1
        self._count(request_id, got)

    def _count(self, request_id: int, got: Completion) -> None:
        request = self.asked[request_id]
        hit = got.usage["prompt_cache_hit_tokens"]
        others = [
            ids
            for key, (tenant, ids) in self.known.items()
            if tenant == request.tenant and key[:2] != (id(self), request_id)
        ]
        siblings = (len(got.prompt_ids) - 1) // BLOCK if request.params.n > 1 else 0
        most = max([siblings, *(shared(got.prompt_ids, ids) for ids in others)])
        if hit > most * BLOCK:
            raise Wrong(f"{hit} tokens hit, and {most} blocks are all that its tenant ever had in common with it")
        self.counts["hit" if hit else "missed"] += 1
        self.counts["partly_hit"] += 0 < hit < (len(got.prompt_ids) - 1) // BLOCK * BLOCK
        self.counts["off"] += not request.reuse


def shared(one: Any, other: Any) -> int:
    """Full blocks with which two rows of ids begin alike."""
    count = min(len(one), len(other)) // BLOCK * BLOCK
    same = np.asarray(one[:count]) == np.asarray(other[:count])
    return int(np.cumprod(same.reshape(-1, BLOCK).all(1)).sum()) if count else 0


def differences(got: Completion, expected: Completion) -> list[str]:
    """Names of what is not the same to the last bit."""
    parts = {
        "token ids": got.token_ids == expected.token_ids,
        "log-probabilities": got.logprobs == expected.logprobs,
        "experts": got.experts is expected.experts is None or torch.equal(got.experts, expected.experts),
        "kept sets": np.array_equal(got.kept, expected.kept),
        "likeliest tokens": got.top_logprobs == expected.top_logprobs,
        "text": (got.text, got.reasoning, got.finish_reason)
        == (expected.text, expected.reasoning, expected.finish_reason),
    }
    return [name for name, same in parts.items() if not same]


def run_schedule(pool: Pool, seed: int, folder: Path) -> tuple[Counter[str], int]:
    """One schedule in an empty `folder`; what was counted, and how many answers were compared. `Wrong` where anything is."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    known: dict[tuple[int, int, int], tuple[str, list[int]]] = {}
    phases = []
    family = rng.choice(pool.families)
    first, partial, victim = family[0], family[1], rng.choice(pool.families)[LONG]
    others = rng.choices([n for n in range(len(pool.requests)) if n != partial], k=rng.randrange(3, 6))
    checked = 0
    for phase_number in range(2):
        phase = Phase(pool, _engine(pool, rng, {first, partial, victim, *others}, folder), known, counts)
        phases.append(phase)  # so that no two have one id
        if phase_number == 0:
            _first_phase(phase, rng, first, partial, victim, others)
        else:
            _second_phase(phase, rng, first, partial, others)
        phase.close()
        checked += phase.checked
    shutil.rmtree(folder, ignore_errors=True)
    missing = [name for name in FORCED if not counts[name]]
    if missing:
        raise Wrong(f"schedule {seed} forced no {missing}: {dict(counts)}")
    return counts, checked


def _engine(pool: Pool, rng: random.Random, numbers: set[int], folder: Path) -> Engine:
    longest = max(
        min(len(r.prompt_ids or ()) + r.params.max_tokens, CONTEXT) for r in (pool.requests[n] for n in numbers)
    )
    blocks = -(-longest // BLOCK) + rng.randrange(4)
    return pool.engine(
        slots=min(rng.choice((1, 2, 3, 3, 4)), (blocks + 1) // 2),  # so that all can be taken
        step_tokens=rng.choice((32, 48, 77, 150, 2048)),
        cache_bytes=blocks * ModelRunner.block_bytes(pool.model),
        cache_dir=folder,
    )


def _first_phase(phase: Phase, rng: random.Random, first: int, partial: int, victim: int, others: list[int]) -> None:
    """The stem, then what shares a part of it; beside them others at random steps, one that is cancelled, one that is urgent."""
    come = sorted((rng.randrange(12), n) for n in others[:-1])
    scheduler = phase.engine._cores[0].scheduler
    leader = phase.submit(first)
    leaves, urgent, second, cancel_at, step = -1, -1, -1, rng.randrange(3, 9), 0
    while come or second < 0 or urgent < 0 or scheduler.request_ids():
        while come and come[0][0] <= step:
            tenant, priority = rng.choice(("", "", "b")), rng.choice((0, 0, -1))
            phase.submit(come.pop(0)[1], tenant=tenant, priority=priority, reuse=rng.random() < 0.8)
        if leaves < 0 and step >= 2:
            leaves = phase.submit(victim, tenant=rng.choice(("", "b")), priority=1)
        if leaves not in phase.gone and step >= cancel_at and any(t == leaves for t, _ in phase.seated()):
            phase.cancel(leaves)
        if urgent < 0 and step >= 4 and not scheduler._free:
            urgent = phase.submit(others[-1], priority=2)
        if urgent < 0 and second >= 0 and not scheduler.request_ids():  # there was never a crowd: make one
            for _ in range(scheduler.slots):
                phase.submit(phase.pool.crowd, priority=-1)
        if leader in phase.step():
            second = phase.submit(partial)
        step += 1
        if step > ENDLESS:
            raise Wrong("it does not end")


def _second_phase(phase: Phase, rng: random.Random, first: int, partial: int, others: list[int]) -> None:
    """Another engine on the same folder: the stem again is found on disk."""
    request_id = phase.submit(first)
    phase.step()
    restored = phase.engine.stats()["blocks_restored"]
    come = sorted((rng.randrange(8), n) for n in (partial, rng.choice(others)))
    step = 0
    while come or phase.engine._cores[0].scheduler.request_ids():
        while come and come[0][0] <= step:
            phase.submit(come.pop(0)[1])
        phase.step()
        step += 1
    phase.counts["restored"] += restored > 0 and phase.hits[request_id] > 0
