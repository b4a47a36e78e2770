"""The engine: what it records is what the model says, and nothing but the request decides the answer."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from scaled import make_model, recomputed, whole_forward

from rorqual.core.errors import CheckpointError, ConfigError, DataError
from rorqual.core.records import Message
from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.engine import CORE_WORK
from rorqual.engine.runner import ModelRunner
from rorqual.model import Decoder, account
from rorqual.ops.sampling import SamplingSettings


def requests(count: int, *, n: int = 3, seed: int = 0, max_tokens: int = 20, **params: float) -> list[Request]:
    rng = random.Random(seed)
    out = []
    for number in range(count):
        prompt = (0, 3, *(rng.randrange(7, 263) for _ in range(rng.randrange(0, 25))), 4)
        sampling = SamplingParams(max_tokens=max_tokens, seed=seed * 1000 + number, n=n, **params)  # type: ignore[arg-type]
        out.append(Request(prompt_ids=prompt, params=sampling))
    return out


def settings_of(completion: Completion, params: SamplingParams) -> SamplingSettings:
    return SamplingSettings.of([params] * len(completion.token_ids), "cpu")


def flat(results: list[list[Completion]]) -> list[Completion]:
    return [completion for group in results for completion in group]


def on_the_edge(model: Decoder, completion: Completion, request: Request) -> torch.Tensor:
    """Tokens for which rounding decides where top-p cuts: some mass lies within 1e-5 of it."""
    p = request.params
    if p.top_p == 1:
        return torch.zeros(len(completion.token_ids), dtype=torch.bool)
    logits, _ = whole_forward(model, completion)
    ordered = (logits.double() / p.temperature).sort(-1, descending=True).values[:, : p.top_k or None].softmax(-1)
    edge = ((ordered.cumsum(-1) - p.top_p).abs() < 1e-5).any(-1)
    assert edge.sum() <= 2
    return edge


PARAMS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.4, "top_k": 5},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 20},
]


# ---- what is recorded


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_logprobs_are_those_of_a_whole_forward(
    model: Decoder, tokenizer: Tokenizer, chat: ChatFormat, params: dict[str, float]
) -> None:
    """Pitfalls trl#3867, #4159: under the distribution sampled from, temperature and cuts included."""
    asked = requests(6, seed=1, max_tokens=24, **params)
    results = Engine.of(model, tokenizer, chat, slots=7).generate(asked)
    differences = [
        (torch.tensor(c.logprobs) - recomputed(model, c, settings_of(c, request.params)))[
            ~on_the_edge(model, c, request)
        ]
        for request, group in zip(asked, results)
        for c in group
    ]
    every = torch.cat(differences)
    assert len(every) > 200
    assert every.mean().abs() <= 1e-6
    assert every.abs().max() <= 1e-4


def test_experts_are_those_of_a_whole_forward(model: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    for c in flat(Engine.of(model, tokenizer, chat, slots=5).generate(requests(6, temperature=1.0))):
        assert (c.experts.shape, c.experts.dtype) == ((len(c.prompt_ids) + len(c.token_ids) - 1, 2, 2), torch.int8)
        _, own = whole_forward(model, c)
        assert torch.equal(own.sort(-1).values, c.experts.long().sort(-1).values)


# ---- what decides the answer


def compare(got: list[Completion], expected: list[Completion]) -> None:
    """To the last bit."""
    assert [c.token_ids for c in got] == [c.token_ids for c in expected]
    for a, b in zip(got, expected):
        assert a.logprobs == b.logprobs
        assert torch.equal(a.experts, b.experts)


# ---- weights


def test_weights_of_another_shape_are_refused(engine: Engine) -> None:
    with pytest.raises(CheckpointError, match="does not match the model"):
        engine.load_weights(make_model("gqa"))


def test_training_goes_on_after_generating(tokenizer: Tokenizer, chat: ChatFormat) -> None:
    model = make_model("mla")
    Engine.of(model, tokenizer, chat).generate(requests(2))
    model.logits(model(torch.tensor([[1, 2, 3]])).hidden).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "experts.gate_up" in name)
    assert model.ops.name == "torch"


# ---- text, ends, limits


def test_a_prompt_longer_than_the_context_is_refused_before_anything_runs(engine: Engine) -> None:
    good = requests(1)[0]
    calls: list[int] = []
    with pytest.raises(DataError, match=r"(?s)request 1.*96 tokens.*context of 96.*95 tokens or fewer"):
        engine.generate([good, Request(prompt_ids=(5,) * 96)], progress=lambda done, _: calls.append(done))
    assert calls == []
    (c,) = engine.generate([Request(prompt_ids=(5,) * 95, params=SamplingParams(max_tokens=9))])[0]
    assert len(c.token_ids) == 1
    assert c.finish_reason == "length"


def test_a_single_prompt_is_not_taken_for_a_list_of_characters(engine: Engine) -> None:
    params = SamplingParams(max_tokens=2)
    for prompt in ("add 1+2", Request((Message("user", "add 1+2"),), params)):
        with pytest.raises(DataError, match="prompts is a single prompt"):
            engine.generate(prompt, params)  # type: ignore[arg-type]
        assert len(engine.generate([prompt], params)) == 1
    for prompts in ([7, 8, 9], [Message("user", "add 1+2")], [{"role": "user"}]):
        with pytest.raises(DataError, match="prompt 0 is a"):
            engine.generate(prompts, params)  # type: ignore[arg-type]


def test_messages_and_thinking_modes_of_other_libraries_are_refused_by_name(engine: Engine) -> None:
    for prompt in ([{"role": "user", "content": "hi"}], [Message("user", "hi"), 5]):
        with pytest.raises(DataError, match=r"not a Message\n.*Write Message\('user', 'Hello'\)"):
            engine.generate([prompt])  # type: ignore[list-item]
    with pytest.raises(DataError, match="unknown thinking mode 'yes'"):
        Request((Message("user", "hi"),), thinking="yes")  # type: ignore[arg-type]


def test_an_engine_that_cannot_be_meant_is_refused(mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    for wrong in ({"slots": 0}, {"threads": 0}, {"max_len": 97}, {"max_len": 1}):
        with pytest.raises(ConfigError):
            Engine.of(mla, tokenizer, chat, **wrong)  # type: ignore[arg-type]
    larger = Tokenizer.byte_level(["the cat sat on the mat " * 50], vocab_size=270)
    with pytest.raises(DataError, match="vocabulary has 264"):
        Engine.of(mla, larger, chat)


def test_a_further_lane_runs_where_its_work_pays_or_the_slots_are_too_few(
    mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    """Threads that have little to do hold each other up: two took twice the time of one (docs/LOG.md)."""
    flops = account(mla.config).flops / 2 / len(mla.config.layers)
    pays = int(2 * CORE_WORK / flops) + 1  # samples
    for slots, samples, cores in ((4096, 100, 1), (4096, pays - 2, 1), (4096, pays, 2), (64, 64, 1), (64, 65, 2)):
        engine = Engine.of(mla, tokenizer, chat, threads=2, slots=slots, cache_bytes=1 << 20)
        jobs = [engine._processor.validate_request(request, "") for request in requests(samples, n=1)]
        assert len(engine._distribute_jobs(jobs)) == cores, (slots, samples)


# ---- step by step


def test_leaving_a_stream_frees_its_slot(mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    engine = Engine.of(mla, tokenizer, chat, slots=1)
    request = requests(1, n=1, max_tokens=60)[0]
    stream = engine.stream(request)
    next(stream)
    with pytest.raises(ConfigError, match="submitted"):
        engine.generate([request])
    stream.close()  # type: ignore[attr-defined]
    assert len(engine.generate([request])[0]) == 1


# ---- run directories


def test_the_cache_stays_within_its_memory_and_the_answers_are_the_same(
    model: Decoder, tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    """Fewer blocks than all rows need in the end: some step back, nothing waits for ever, and nobody's answer is another's."""
    asked = requests(4, n=2, temperature=1.0, max_tokens=70)
    whole = flat(Engine.of(model, tokenizer, chat, slots=16, engine_cores=1).generate(asked))
    block = ModelRunner.block_bytes(model)
    for blocks in (2, 5):
        engine = Engine.of(model, tokenizer, chat, slots=16, engine_cores=1, cache_bytes=blocks * block)
        compare(flat(engine.generate(asked)), whole)
        cache = engine._cores[0].runner.cache
        assert (
            sum(pool.nbytes for layer in cache.layers for pool in layer.values()) == (blocks + 1) * block
        )  # one is nobody's
        stats = engine.stats()
        assert stats["preemptions"] > 0 and stats["blocks_total"] == blocks
        assert (stats["blocks_used"], stats["running"], stats["waiting"]) == (0, 0, 0)


def test_what_the_cache_could_never_hold_is_refused(mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    engine = Engine.of(mla, tokenizer, chat, cache_bytes=ModelRunner.block_bytes(mla))
    asked = Request(prompt_ids=(5,) * 60, params=SamplingParams(max_tokens=5, ignore_eos=True))
    with pytest.raises(DataError, match=r"(?s)65 tokens.*holds 64.*cache_bytes"):
        engine.generate([asked])
    with pytest.raises(DataError, match="65 tokens"):
        engine.check(asked)
    within = replace(asked, params=replace(asked.params, max_tokens=4))
    assert len(engine.generate([within])[0][0].token_ids) == 4


def test_one_that_steps_back_again_before_it_is_fed_keeps_what_was_recorded(
    mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    """Its log-probabilities lie under a slot that others have had since."""
    rng = random.Random(8)
    long = Request(
        prompt_ids=tuple(rng.randrange(7, 263) for _ in range(70)),
        params=SamplingParams(max_tokens=20, temperature=1.0, ignore_eos=True, top_logprobs=2),
        reuse=False,
    )
    urgent = [
        Request(prompt_ids=(5, 6, 7), params=SamplingParams(max_tokens=n, ignore_eos=True), priority=1) for n in (12, 2)
    ]
    expected = Engine.of(mla, tokenizer, chat).generate([long])[0][0]
    engine = Engine.of(mla, tokenizer, chat, slots=1, step_tokens=32, engine_cores=1)
    engine.submit(long)
    deltas = [delta for _ in range(12) for delta in engine.step()]
    assert len(deltas) > 5
    for request in urgent:
        engine.submit(request)
        while engine.stats()["waiting"]:
            deltas += engine.step()
        deltas += engine.step()
    while any(stats := [engine.stats()["running"], engine.stats()["waiting"]]):
        deltas += engine.step()
    assert stats == [0, 0] and engine.stats()["preemptions"] == 2
    (done,) = [d.completion for d in deltas if d.request_id == 0 and d.completion is not None]
    compare([done], [expected])
    assert done.top_logprobs == expected.top_logprobs
    mine = [d for d in deltas if d.request_id == 0]
    assert [d.token for d in mine] == expected.token_ids and [d.logprob for d in mine] == expected.logprobs


@pytest.mark.parametrize("stops", [("ser", "Us"), ("Us", "ser"), ("<｜User｜>",), ("r｜",)])
def test_the_stop_that_ends_first_ends_the_text(
    mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat, stops: tuple[str, ...]
) -> None:
    """In whatever order they were given, as in a stream; also in the name of a special token, by which an answer has it."""
    name = "<｜User｜>"
    asked = SamplingParams(max_tokens=3, stop=stops, logit_bias=((tokenizer.special_id(name), 100.0),))
    found = Engine.of(mla, tokenizer, chat).generate([Request((Message("user", "hi"),), asked, "off")])[0][0]
    first = min((name.find(stop) + len(stop), name.find(stop)) for stop in stops)[1]
    assert found.text == name[:first] and len(found.token_ids) == 1 and found.finish_reason == "stop"
