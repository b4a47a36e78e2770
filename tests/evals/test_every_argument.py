"""Every argument of an evaluation, a comparison, a claim and an interval decides what it is named for."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rorqual.core.content_parts import TextPart
from rorqual.core.records import Message
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine.embeds import Embeds
from rorqual.engine.request import Completion, Grammar, Request, SamplingParams
from rorqual.evals.answer_cache import AnswerCache, _cache_key
from rorqual.evals.baselines import baseline_accuracies
from rorqual.evals.compare import Comparison, compare_pair, did_think, is_right
from rorqual.evals.evaluating import evaluate, pick_problems, with_problem_seed
from rorqual.evals.evaluation import Evaluation, EvaluationRow, GradedSample
from rorqual.evals.perplexity import text_loss
from rorqual.evals.stats import (
    difference_over_seeds,
    mcnemar,
    wilson,
)
from rorqual.evals.table import unmarked_replies_note
from rorqual.model.decoder import Decoder
from rorqual.model.init import build
from rorqual.recipes.models import v3_like
from rorqual.tasks.task import Problem, Task, Verdict


class Words(Task):
    """Twelve problems of each of two families and two levels, in an order and with texts that split and seed decide."""

    name = "words"

    def problems(self, split: str, seed: int) -> Iterator[Problem]:  # type: ignore[override]
        for number in np.random.default_rng([seed, len(split)]).permutation(48).tolist():
            family, level = ("even", "odd")[number % 2], ("1", "2")[number // 2 % 2]
            yield Problem(f"{split}:{number}", f"{split} {seed} {number}?", str(number % 3), family, level)

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT if reply == problem.answer else Verdict.WRONG

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        return reply


@dataclass
class Says:
    """A generator that answers with the sampling seed, and remembers what it was asked."""

    seen: list[Request] = field(default_factory=list)
    progress: Any = None

    def generate(self, requests: Sequence[Request], *, progress: Any = None) -> list[list[Completion]]:
        self.seen, self.progress = list(requests), progress
        return [[self.answer(r, n) for n in range(r.params.n)] for r in requests]

    def answer(self, request: Request, number: int) -> Completion:
        return Completion((1,), [7, 8], [0.0, 0.0], "stop", str((request.params.seed + number) % 3), None)


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


# ---- asking


def told(**arguments: Any) -> str:
    """All that an evaluation asks and all that it records, but for its wall-clock time."""
    generator = Says()
    found = evaluate(generator, Words(), **{"count": 4, **arguments})
    return json.dumps([repr(generator.seen), repr(generator.progress), found.model_dump(mode="json") | {"seconds": 0}])


def tell(done: int, total: int) -> None:
    """Progress that says nothing."""


ASKED: dict[str, Any] = {
    "split": "dev",
    "count": 5,
    "seed": 1,
    "thinking": "on",
    "params": SamplingParams(seed=3),
    "per_family": True,
    "progress": tell,
    "model": "mine",
    "problems": [Problem("k", "p", "a", "f")],
    "measured": {"all": {"rule": 0.5}},
    "votes": True,
    "stop_when": "settled",
    "refine": 1,
    "system": "Be brief.",
}


@pytest.mark.parametrize("name", ASKED)
def test_an_argument_of_evaluate_changes_what_is_asked_or_recorded(name: str) -> None:
    assert told() == told()
    assert told() != told(**{name: ASKED[name]})


def test_no_argument_of_evaluate_is_forgotten_here() -> None:
    assert parameters(evaluate) == {"generator", "task", *ASKED}


def test_an_evaluation_records_its_settings_each_under_its_name() -> None:
    generator, params = Says(), SamplingParams(max_tokens=9, temperature=0.5, seed=11, n=2)
    shown: list[tuple[int, int]] = []
    found = evaluate(
        generator,
        Words(),
        split="train",
        count=3,
        seed=7,
        thinking="off",
        params=params,
        per_family=True,
        progress=lambda *of: shown.append(of),
        model="mine",
        system="Be brief.",
    )
    assert (found.task, found.model, found.split, found.seed, found.count) == ("words", "mine", "train", 7, 3)
    assert (found.per_family, found.thinking, found.params) == (True, "off", params)
    assert (found.system, found.stop_when) == ("Be brief.", "never")
    picked = pick_problems(Words(), "train", 3, 7, True)
    generator.progress(5, 24)
    assert len(picked) == 12 and shown == [(5, 24)]
    assert found.problem_keys == [problem.key for problem in picked]
    assert generator.seen == [
        Request((Message("system", "Be brief."), *p.messages), with_problem_seed(params, p.key), "off") for p in picked
    ]
    assert found.baselines == baseline_accuracies(Words(), picked, 7)


def test_a_problems_seed_is_of_the_evaluations_and_its_key_and_nothing_else_changes() -> None:
    params = SamplingParams(max_tokens=9, temperature=0.5, top_p=0.9, n=3, seed=4, stop=("x",))
    seeds = {with_problem_seed(replace(params, seed=seed), key).seed for seed in range(20) for key in "abcdefghij"}
    assert len(seeds) == 200 and all(0 <= seed < 2**31 for seed in seeds)
    assert replace(with_problem_seed(params, "a"), seed=4) == params


def test_a_sample_has_each_of_its_fields_from_its_problem_and_its_completion() -> None:
    problem = Problem("the key", "the prompt?", "gold", "the family", "the level", "steps")
    usage = {"prompt_tokens": 3, "completion_tokens": 8, "reasoning_tokens": 5}

    class One(Says):
        def answer(self, request: Request, number: int) -> Completion:
            broken = {} if number == 0 else {"error": "gave up"}
            return Completion((1,), [1] * 9, [0.0, -0.5] * 4 + [-0.25], "length", "gold", "so", usage=usage, **broken)

    found = evaluate(One(), Words(), params=SamplingParams(n=2), problems=[problem])
    expected = {
        "key": "the key",
        "family": "the family",
        "level": "the level",
        "prompt": "the prompt?",
        "answer": "gold",
        "reply": "gold",
        "reasoning": "so",
        "verdict": Verdict.RIGHT,
        "last": Verdict.RIGHT,
        "unmarked": False,
        "prompt_tokens": 3,
        "tokens": 9,
        "thinking_tokens": 5,
        "thought": True,
        "truncated": True,
        "chance": None,
        "error": "",
        "answered": None,
        "logprob": -0.25,
        "score": None,
        "earlier": (),
    }
    assert set(GradedSample.model_fields) == expected.keys()
    assert [dict(one) for one in found.samples] == [
        expected,
        expected | {"verdict": Verdict.UNGRADED, "last": Verdict.UNGRADED, "error": "gave up"},
    ]
    assert found.usage == {"prompt_tokens": 6, "completion_tokens": 16, "reasoning_tokens": 10}


def test_each_sample_is_graded_by_both_readings() -> None:
    """`Words` wants "gold" alone, and the last line is "gold" alone."""

    class One(Says):
        def answer(self, request: Request, number: int) -> Completion:
            return Completion((1,), [1], [-0.5], "stop", ("It is:\ngold", "<think>")[number], None)

    found = evaluate(One(), Words(), params=SamplingParams(n=2), problems=[Problem("k", "?", "gold", "f")])
    assert [(s.verdict, s.last, s.unmarked) for s in found.samples] == [
        (Verdict.WRONG, Verdict.RIGHT, False),
        (Verdict.WRONG, Verdict.WRONG, True),
    ]


# ---- summaries


def sample(key: str, right: bool | None, family: str = "f", level: str = "1", **more: Any) -> GradedSample:
    given = Verdict.UNGRADED if right is None else Verdict.RIGHT if right else Verdict.WRONG
    least: dict[str, Any] = {"prompt": "?", "answer": "a", "reply": "r", "reasoning": None, "tokens": 4}
    least |= {"thinking_tokens": 0, "thought": False, "truncated": False}
    return GradedSample(key=key, family=family, level=level, verdict=given, **least | more)


def of(samples: Sequence[GradedSample], **more: Any) -> Evaluation:
    least: dict[str, Any] = {"task": "t", "split": "test", "seed": 0, "count": 1, "per_family": False}
    return Evaluation(**least | {"thinking": "auto", "params": SamplingParams(), "samples": tuple(samples)} | more)


MIXED = (
    sample("a", True, tokens=10, thinking_tokens=6, thought=True, last=Verdict.RIGHT),
    sample("b", True, tokens=20, thinking_tokens=8, thought=True, truncated=True, last=Verdict.WRONG),
    sample("c", False, tokens=3, last=Verdict.RIGHT, unmarked=True),
    sample("d", None, tokens=7, truncated=True, last=Verdict.UNGRADED),
    sample("e", False, tokens=5, truncated=True),
    sample("g", False, "other", "2"),
)


def test_a_row_has_each_of_its_figures() -> None:
    rules = {"f": {"rule": 0.3, "worse": 0.1}, "f/1": {"rule": 0.2}, "all": {"rule": 0.1}}
    expected = {
        "family": "f",
        "level": "1",
        "problems": 5,
        "graded": 4,
        "right": 2,
        "ungraded": 1,
        "accuracy": 0.5,
        "unmarked": 0.25,
        "last": pytest.approx(2 / 3),
        "interval": wilson(2, 4, 0.8),
        "baselines": {"rule": 0.2},
        "thought": 0.4,
        "thinking_length": 7.0,
        "length": 9.0,
        "truncated": 3,
    }
    found = of(MIXED, baselines=rules)
    assert {f.name for f in fields(EvaluationRow)} == expected.keys()
    assert vars(found.rows("level", 0.8)[0]) == expected
    assert [row.baselines["rule"] for row in (found.rows("family")[0], found.rows("all")[0])] == [0.3, 0.1]
    assert found.rows("family")[1].best_baseline[0] == "" and of(MIXED[1:2], baselines=rules).rows("family")[
        0
    ].best_baseline == (
        "rule",
        0.3,
    )


def test_the_readings_of_older_files_are_unknown() -> None:
    [row] = of(MIXED[4:5]).rows("all")
    assert math.isnan(row.unmarked) and math.isnan(row.last) and unmarked_replies_note({"old": of(MIXED[4:5])}) == ""
    note = unmarked_replies_note({"old": of(MIXED[4:5]), "new": of(MIXED[:5])})
    assert "without a marked answer: old - %, new 25.0 %" in note and note.endswith("reply: old - %, new 66.7 %.")


def test_grain_and_confidence_reach_the_rows() -> None:
    found = of(MIXED)
    assert [(r.family, r.level) for r in found.rows("family")] == [("f", "all"), ("other", "all")]
    assert [(r.family, r.level, r.problems) for r in found.rows("all")] == [("all", "all", 6)]
    twice = of([sample(k, r) for k in "abcdef" for r in (True, k < "d")])
    for one in (found, twice):
        wide, usual, narrow = (one.rows("all", c)[0].interval for c in (0.99, 0.95, 0.5))
        assert (wide.confidence, usual.confidence, narrow.confidence) == (0.99, 0.95, 0.5)
        assert wide.low < narrow.low and wide.high > narrow.high and one.rows("all")[0].interval == usual


# ---- comparisons


BEFORE = [sample(f"{n}", n % 3 == 0, ("f", "g")[n % 2], f"{n % 4}", thought=n % 5 == 0) for n in range(24)]
AFTER = [sample(f"{n}", n % 4 != 1, ("f", "g")[n % 2], f"{n % 4}", thought=n % 5 != 0) for n in range(24)]


@pytest.mark.parametrize("measure", [is_right, did_think])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_a_comparison_has_each_of_its_figures(measure: Any, confidence: float) -> None:
    left_out = [sample("x", None, "f"), sample("y", True, "f")]
    before, after = of([*BEFORE, *left_out]), of([*AFTER, sample("x", True, "f"), sample("y", None, "f")])
    usable = [n for n in range(24) if n % 2 == 0]
    old, new = ([measure(found[n]) for n in usable] for found in (BEFORE, AFTER))
    if measure is did_think:  # whoever is not graded has thought or not all the same
        old, new = [*old, 0.0, 0.0], [*new, 0.0, 0.0]
    expected = {
        "family": "f",
        "level": "all",
        "before": pytest.approx(np.mean(old)),
        "after": pytest.approx(np.mean(new)),
        "difference": difference_over_seeds([np.array(old)], [np.array(new)], confidence),
        "p_value": mcnemar(np.array(old) > 0.5, np.array(new) > 0.5),
        "gained": sum(b > a for a, b in zip(old, new, strict=True)),
        "lost": sum(b < a for a, b in zip(old, new, strict=True)),
        "left_out": 2 if measure is is_right else 0,
        "by_seed": ((pytest.approx(np.mean(old)), pytest.approx(np.mean(new))),),
        "unit": "points",
    }
    assert {f.name for f in fields(Comparison)} == expected.keys()
    assert vars(compare_pair(before, after, measure=measure, confidence=confidence)[0]) == expected
    assert expected["gained"] != expected["lost"]


# ---- answers that are kept


REQUEST: dict[str, Any] = {
    "messages": (Message("user", "another"),),
    "thinking": "on",
    "prompt_ids": (1, 2),
    "tenant": "mine",
    "priority": 1,
    "reuse": False,
    "embeds": Embeds([[1.0, 2.0]], (0,)),
    "adapter": "a",
}
PARAMS: dict[str, Any] = {
    "max_tokens": 65,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 1,
    "seed": 1,
    "ignore_eos": True,
    "min_p": 0.5,
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": ((1, 0.5),),
    "stop": ("x",),
    "stop_token_ids": (1,),
    "top_logprobs": 1,
    "grammar": Grammar("regex", "a"),
    "min_tokens": 1,
    "min_p_first": True,
    "prompt_logprobs": 0,
    "think_budget": 3,
    "calculator": True,
}


class Local:
    """An engine as `AnswerCache` calls a local one; it counts what it generates."""

    def __init__(self) -> None:
        self.asked = 0

    def generate(self, requests: Sequence[Request], *, arrived: Any, progress: Any = None) -> list[list[Completion]]:
        for number, request in enumerate(requests):
            for one in range(request.params.n):
                self.asked += 1
                usage = {"completion_tokens": 3 + one}
                arrived(number, one, Completion((1,), [2], [0.0], "length", f"t{one}", f"r{one}", usage=usage))
        return []


PLAIN = Request((Message("user", "hi"),))


def generated(out: Path | None, request: Request, made: dict[str, Any] | None = None, progress: Any = None) -> int:
    """How many samples of a request the generator is asked for, beside what is kept at `out`."""
    engine = Local()
    with AnswerCache(engine, out, made or {}) as kept:  # type: ignore[arg-type]
        [group] = kept.generate([request], progress=progress)
    assert [c.text for c in group] == [f"t{n}" for n in range(request.params.n)]
    return engine.asked


@pytest.mark.parametrize(
    "other",
    [replace(PLAIN, **{k: v}) for k, v in REQUEST.items()]
    + [replace(PLAIN, params=replace(PLAIN.params, **{k: v})) for k, v in PARAMS.items()],
    ids=[*REQUEST, *(f"params-{name}" for name in PARAMS)],
)
def test_another_question_is_not_answered_from_what_is_kept(other: Request, tmp_path: Path) -> None:
    assert generated(tmp_path / "e.json", PLAIN) == 1
    assert generated(tmp_path / "e.json", PLAIN) == 0
    assert generated(tmp_path / "e.json", other) == 1


def test_a_question_of_today_is_found_tomorrow() -> None:
    """What was paid for is found by its digest: another one would ask it all again."""
    assert _cache_key(PLAIN, 0) == "0a06270eb30d32a2ad3b5e5ccfdb07b4fc21f4b929f3ae4eaa48a5ffb6222208"
    embeds = [replace(PLAIN, embeds=Embeds([[1.0, number]], (0,))) for number in (1.0, 2.0, 1.0)]
    first, second, again = (_cache_key(one, 0) for one in embeds)
    assert first == again != second
    asked = [
        PLAIN.messages[0].content,
        [TextPart(text="hi")],
        [TextPart(text="hi"), TextPart(text="")],
        [TextPart(text="ho")],
    ]
    assert len({_cache_key(replace(PLAIN, messages=(Message("user", content),)), 0) for content in asked}) == 4
    parts = replace(PLAIN, messages=(Message("user", asked[1]),))
    assert _cache_key(parts, 0) == _cache_key(replace(parts, messages=(Message("user", (TextPart(text="hi"),)),)), 0)


def test_no_field_of_a_question_is_forgotten_here() -> None:
    assert {f.name for f in fields(Request)} == {"params", *REQUEST}
    assert {f.name for f in fields(SamplingParams)} == {"n", *PARAMS}


def test_place_and_model_of_kept_answers_decide_and_progress_is_told(tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    two = replace(PLAIN, params=SamplingParams(n=2))
    assert generated(tmp_path / "e.json", two, {"run": 1}, lambda *count: said.append(count)) == 2
    assert said == [(1, 2), (2, 2)]
    assert generated(tmp_path / "e.json", two, {"run": 2}) == generated(tmp_path / "f.json", two, {"run": 1}) == 2
    assert generated(tmp_path / "e.json", two, {"run": 1}) == 0 and generated(None, two) == generated(None, two) == 2
    assert sorted(path.name[:7] for path in tmp_path.iterdir()) == ["e.json.", "e.json.", "f.json."]
    with AnswerCache(Local(), tmp_path / "e.json", {"run": 1}) as kept:  # type: ignore[arg-type]
        [group] = kept.generate([two])
    assert [(c.text, c.reasoning, c.finish_reason, c.usage) for c in group] == [
        (f"t{n}", f"r{n}", "length", {"completion_tokens": 3 + n}) for n in range(2)
    ]
    assert parameters(AnswerCache) == {"generator", "out", "made"}


# ---- texts


@pytest.fixture(scope="module")
def net() -> Decoder:
    return build(v3_like("tiny", vocab_size=BASE_VOCAB, context=128), seed=0)


def losses_of(net: Decoder, text: str, window: int, windows: int) -> list[float]:
    """The definition: each token of each window from those before it in that window."""
    ids = Tokenizer.byte_level().encode(text)
    losses = []
    for start in range(0, windows * window, window):
        with torch.no_grad():
            hidden = net(torch.tensor([ids[start : start + window]])).hidden[0]
            logprobs = net.logits(hidden).double().log_softmax(-1)
        targets = ids[start + 1 : start + window + 1]
        losses.append(-float(logprobs[range(window), targets].mean()))
    return losses


@pytest.mark.parametrize(("window", "windows", "counted"), [(8, 0, 5), (8, 2, 2), (20, 0, 2), (8, 100, 5)])
def test_a_texts_loss_is_of_its_windows(net: Decoder, window: int, windows: int, counted: int) -> None:
    text = "Ünïcode ünd a fëw more wörds, thirty-öne."
    found = text_loss(net, Tokenizer.byte_level(), text, window=window, windows=windows)
    losses = losses_of(net, text, window, counted)
    assert found.losses == pytest.approx(losses) and found.window == window and found.tokens == counted * window
    said = Tokenizer.byte_level().decode(Tokenizer.byte_level().encode(text)[1 : counted * window + 1])
    assert (found.characters, found.bytes) == (len(said), len(said.encode()))
    assert found.per_token == pytest.approx(np.mean(losses))
    assert found.per_character == pytest.approx(window * sum(losses) / len(said))
    assert found.bits_per_byte == pytest.approx(window * sum(losses) / np.log(2) / len(said.encode()))
    read = partial(text_loss, net, Tokenizer.byte_level())
    assert found.passages == read(text + "?", window=window, windows=counted).passages
    for one in (read(text.replace("code", "kode"), window=window, windows=counted), read(text, window=window - 1)):
        assert one.passages != found.passages
    assert found.per_character > found.per_token and found.perplexity == pytest.approx(np.exp(found.per_token))
