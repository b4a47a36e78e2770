"""Conversations of several tenants that run through one engine at once, each turn's prompt the former one, its reply and more: for tests,
and by the thousand for `scripts/conversations.py`. A canary is in each first turn: ids that no other conversation has."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from consistency import check_scheduler
from schedules import HOW, Wrong, differences, shared
from trained import CONTEXT, text

from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.runner import ModelRunner
from rorqual.model import Decoder
from rorqual.ops.paged import BLOCK

TENANTS = ("ada", "ben", "cleo", "")


@dataclass
class Talk:
    """One conversation. `said[i]`: what the user adds in turn i; `ids`: everything so far."""

    name: str
    tenant: str
    said: list[list[int]]
    params: SamplingParams
    ids: list[int] = field(default_factory=list)
    turn: int = 0

    @property
    def over(self) -> bool:
        return self.turn == len(self.said)

    def ask(self) -> Request:
        """The next turn."""
        return Request(prompt_ids=(*self.ids, *self.said[self.turn]), params=self.params, tenant=self.tenant)


def make_talks(count: int, seed: int, tokenizer: Tokenizer) -> list[Talk]:
    """Half of them begin with one of a few system prompts, in whatever tenant: what may be shared, and what may not."""
    rng = random.Random(seed)
    systems = [tokenizer.encode(text(rng, 150))[:140] for _ in range(max(2, count // 12))]
    talks = []
    for number in range(count):
        canary = f"{number:04d} {rng.randrange(10**9):09d}\n"
        first = [*(rng.choice(systems) if rng.random() < 0.5 else []), *tokenizer.encode(canary + text(rng, 30))]
        more = [tokenizer.encode(text(rng, 20))[: rng.randrange(1, 60)] for _ in range(rng.randrange(1, 3))]
        how = rng.choice(HOW[:9])
        params = SamplingParams(max_tokens=rng.randrange(2, 14), seed=rng.randrange(2**63), **how)
        talks.append(Talk(canary, rng.choice(TENANTS), [first, *more], params))
    return talks


def engine_for(model: Decoder, chat: ChatFormat, **options: object) -> Engine:
    return Engine.of(model, chat.tokenizer, chat, engine_cores=1, **options)  # type: ignore[arg-type]


def converse(model: Decoder, count: int, seed: int, *, at_once: int = 12, blocks: int = 40) -> Iterator[Counter[str]]:
    """Hold `count` conversations, `at_once` interleaved; counts so far after each that ends. `Wrong` where anything is.

    Checked of each turn: it is the answer computed alone; no more of its prompt was found than its own tenant had said before.
    """
    chat = chat_format(Tokenizer.byte_level())
    rng, counts = random.Random(seed), Counter[str]()
    engine = engine_for(
        model, chat, slots=6, step_tokens=100, reuse=True, cache_bytes=blocks * ModelRunner.block_bytes(model)
    )
    waiting, live = make_talks(count, seed, chat.tokenizer), dict[int, tuple[Talk, Request]]()
    idle: list[Talk] = []
    known: dict[str, list[tuple[int, ...]]] = {}
    scheduler = engine._cores[0].scheduler
    while waiting or idle or live:
        while waiting and len(live) + len(idle) < at_once:
            idle.append(waiting.pop())
        for talk in [t for t in idle if rng.random() < 0.3 or not live]:
            idle.remove(talk)
            request = talk.ask()
            live[engine.submit(request)] = talk, request
            known.setdefault(talk.tenant, []).append(request.prompt_ids or ())
        deltas = engine.step()
        check_scheduler(scheduler)
        for done in (d for d in deltas if d.completion is not None):
            talk, request = live.pop(done.request_id)
            assert done.completion is not None
            _judge(model, chat, talk, request, done.completion, known, counts)
            talk.ids, talk.turn = [*done.completion.prompt_ids, *done.completion.token_ids], talk.turn + 1
            known[talk.tenant].append(tuple(talk.ids))
            if not talk.over and len(talk.ids) + 80 < CONTEXT:
                idle.append(talk)
            else:
                counts["conversations"] += 1
                yield counts
    counts["preemptions"] = int(engine.stats()["preemptions"])
    counts["evictions"] = engine._cores[0].kv_cache.pool.evictions
    yield counts


def _judge(
    model: Decoder,
    chat: ChatFormat,
    talk: Talk,
    request: Request,
    got: Completion,
    known: dict[str, list[tuple[int, ...]]],
    counts: Counter[str],
) -> None:
    alone = replace(request, tenant="", reuse=False)
    expected = engine_for(model, chat, slots=1).generate([alone])[0][0]
    if found := differences(got, expected):
        raise Wrong(f"conversation {talk.name!r} of {talk.tenant!r}, turn {talk.turn}: {found} are not those alone")
    hit = got.usage["prompt_cache_hit_tokens"]
    own = [ids for ids in known[talk.tenant] if ids != request.prompt_ids]
    most = max((shared(got.prompt_ids, ids) for ids in own), default=0)
    if hit > most * BLOCK:
        raise Wrong(f"conversation {talk.name!r} of {talk.tenant!r}: {hit} tokens hit, {most} blocks were its tenant's")
    elsewhere = max(
        (shared(got.prompt_ids, ids) for tenant, every in known.items() if tenant != talk.tenant for ids in every),
        default=0,
    )
    counts["turns"] += 1
    counts["hit_tokens"] += hit
    counts["miss_tokens"] += len(got.prompt_ids) - hit
    counts["could_have_leaked"] += elsewhere > most
