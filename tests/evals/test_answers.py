"""Early stopping, checking and verifiers with a real engine: what is asked for, what is kept, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import Message, RunDir
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.engine.seeds import sample_seed
from rorqual.evals.evaluating import CHECK, evaluate, pick_problems, with_problem_seed
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.stats import wilson
from rorqual.evals.trained_verifier import verifier_prompt, with_verifier_scores, write_training_rows
from rorqual.evals.votes import (
    best_scored_accuracy,
    refine_results,
    rule_results,
    samples_until,
    stop_rule,
    weighted_majority_accuracy,
)
from rorqual.recipes import make_run
from rorqual.tasks.find import load_task
from rorqual.tasks.task import Problem, Split, Task, Verdict
from rorqual.train.loop import fit

TASK = "families:swap"


class Digits(Task):
    """Swaps, but an answer is right if it begins with a digit: an untrained model has few different answers."""

    name = "digits"

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        return load_task(TASK).problems(split, seed)

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT if reply[:1].isdigit() else Verdict.WRONG

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        return "digit" if reply[:1].isdigit() else "letter" if reply[:1].isalpha() else None


PARAMS = SamplingParams(max_tokens=2, temperature=0.6, n=6, seed=3)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A model that answers with few different letters."""
    out = tmp_path_factory.mktemp("answers") / "run"
    settings = {"task": "families", "size": "tiny", "steps": "40", "rows": "4", "row": "192"}
    fit(make_run("sft", settings), RunDir(out), quiet=True)
    return Engine(out, record_experts=False, threads=1)


@pytest.fixture(scope="module")
def votes(engine: Engine) -> Evaluation:
    return evaluate(engine, Digits(), count=12, thinking="off", params=PARAMS, votes=True)


@pytest.mark.parametrize("stop_when", ["settled", "sure"])
def test_stopped_samples_are_the_first_of_all_samples(engine: Engine, votes: Evaluation, stop_when: str) -> None:
    found = evaluate(engine, Digits(), count=12, thinking="off", params=PARAMS, stop_when=stop_when)  # type: ignore[arg-type]
    sure = stop_rule(stop_when, 6)  # type: ignore[arg-type]
    lengths = set()
    for key in votes.problem_keys:
        whole, part = ([s for s in one.samples if s.key == key] for one in (votes, found))
        assert part == whole[: samples_until(whole, sure)]
        lengths.add(len(part))
    assert len(lengths) > 1, "if all stop at once, a rule that counts to there is not seen"
    assert found.stop_when == stop_when and found.params.n == 6
    name = {"settled": "majority, until settled", "sure": "majority, until 95% sure"}[stop_when]
    [expected] = [one for one in rule_results(votes) if one.rule == name]
    [first, ours] = rule_results(found)
    assert ours == expected and first.samples == 1
    assert found.usage["completion_tokens"] == sum(s.tokens for s in found.samples)


def test_a_refined_reply_answers_the_whole_conversation(engine: Engine) -> None:
    params = SamplingParams(max_tokens=4, temperature=1.0, n=2, seed=3)
    found = evaluate(engine, TASK, count=3, thinking="off", params=params, refine=2, votes=True)
    problems = pick_problems(load_task(TASK), "test", 3, 0, False)
    assert [s.key for s in found.samples] == [p.key for p in problems for _ in range(2)]
    for problem, part in zip(problems, (found.samples[i : i + 2] for i in (0, 2, 4)), strict=True):
        [firsts] = engine.generate([Request(problem.messages, with_problem_seed(params, problem.key), "off")])
        for place, (first, last) in enumerate(zip(firsts, part, strict=True)):
            talk, replies = [*problem.messages], [*last.earlier, last]
            assert len(replies) == 3 and replies[0].reply == first.text and not replies[1].earlier
            for number, reply in enumerate(replies[1:], 1):
                talk += [Message("assistant", replies[number - 1].reply), Message("user", CHECK)]
                sampled = with_problem_seed(
                    replace(params, n=1, seed=sample_seed(with_problem_seed(params, problem.key).seed, place)),
                    f"round {number}",
                )
                [[expected]] = engine.generate([Request(tuple(talk), sampled, "off")])
                assert reply.reply == expected.text and reply.answered == (reply.reply.strip() or None)
    replies = [[*s.earlier, s] for s in found.samples]
    assert len({tuple(one.reply for one in some) for some in replies}) > 1
    rows = refine_results(found)
    assert [row.rule for row in rows] == ["first reply", "refined 1 time", "refined 2 times"]
    for number, row in enumerate(rows):
        right = sum(some[number].verdict is Verdict.RIGHT for some in replies)
        assert row.accuracy == right / 6
        assert row.tokens == pytest.approx(sum(one.tokens for some in replies for one in some[: number + 1]) / 6)


def test_progress_counts_all_rounds(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    params = SamplingParams(max_tokens=2, temperature=1.0, n=2)
    evaluate(engine, TASK, count=3, thinking="off", params=params, refine=2, progress=lambda *x: seen.append(x))
    assert {total for _, total in seen} == {18} and seen[-1] == (18, 18) and (6, 18) in seen


class Rejecting:
    """A server that rejects one problem, and answers the others with one of two words."""

    def __init__(self) -> None:
        self.asked: list[tuple[Request, ...]] = []

    def generate(self, requests: Sequence[Request], *, progress: Any = None) -> list[list[Completion]]:
        self.asked.append(tuple(requests))
        return [[self.answer(request)] for request in requests]

    def answer(self, request: Request) -> Completion:
        error = "rejected" if request.messages == self.asked[0][0].messages else ""
        word = "1a" if request.params.seed % 2 else "ab"
        return Completion((1,), [2], [-1.0], "stop", "" if error else word, "so I thought", error=error)


def test_a_problem_that_is_rejected_is_not_asked_for_again() -> None:
    server = Rejecting()
    found = evaluate(server, Digits(), count=5, params=PARAMS, stop_when="settled")
    rejected = found.problem_keys[0]
    assert [s.key for s in found.samples].count(rejected) == 1 and len(server.asked) > 2
    assert all(len(wave) <= 4 for wave in server.asked[1:])


def test_a_checked_reply_keeps_its_reasoning_in_the_conversation() -> None:
    server = Rejecting()
    evaluate(server, Digits(), count=2, params=SamplingParams(max_tokens=2), refine=1)
    for request in server.asked[1]:
        assert request.messages[1].reasoning == "so I thought" and request.messages[2].text == CHECK


# ---- verifiers


@pytest.fixture(scope="module")
def graded(votes: Evaluation) -> Evaluation:
    """Every other sample is right, so that both answers occur, and one is ungraded."""
    verdicts = [Verdict.RIGHT, Verdict.WRONG] * (len(votes.samples) // 2)
    samples = [s.model_copy(update={"verdict": v}) for s, v in zip(votes.samples, verdicts, strict=True)]
    samples[4] = samples[4].model_copy(update={"verdict": Verdict.UNGRADED})
    return votes.model_copy(update={"samples": tuple(samples)})


@pytest.fixture(scope="module")
def verifier(graded: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("verifier")
    assert write_training_rows(graded, folder / "rows.jsonl") == len(graded.samples) - 1
    settings = {
        "data": str(folder / "rows.jsonl"),
        "size": "tiny",
        "steps": "80",
        "lr": "0.01",
        "rows": "4",
        "row": "192",
        "seed": "9",
    }
    fit(make_run("sft", settings), RunDir(folder / "run"), quiet=True)
    return Engine(folder / "run", record_experts=False, threads=1)


def test_a_verifier_is_trained_on_graded_replies(graded: Evaluation, tmp_path: Path) -> None:
    write_training_rows(graded, tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    known = [s for s in graded.samples if s.verdict is not Verdict.UNGRADED]
    assert [row["messages"][1]["content"] for row in rows] == [
        "yes" if s.verdict is Verdict.RIGHT else "no" for s in known
    ]
    for sample, row in zip(known, rows, strict=True):
        asked = row["messages"][0]["content"]
        assert asked == verifier_prompt(sample) and asked.startswith(sample.prompt) and sample.reply.strip() in asked
    thought = known[0].model_copy(update={"reasoning": " 2+2 = 4 ", "reply": "4"})
    assert verifier_prompt(thought) == f"{thought.prompt}\n2+2 = 4\n4\nRight?"


def test_scores_are_the_log_odds_of_yes(graded: Evaluation, verifier: Engine) -> None:
    found = with_verifier_scores(graded, verifier)
    yes, no = (verifier.tokenizer.encode(word)[0] for word in ("yes", "no"))
    for sample in found.samples[:8]:
        prompt = verifier.chat.prompt((Message("user", verifier_prompt(sample)),), "off")
        with torch.no_grad():
            hidden = verifier.scoring_model(torch.tensor([prompt])).hidden[0, -1]
            logprobs = verifier.scoring_model.logits(hidden[None])[0].log_softmax(-1)
        assert sample.score == pytest.approx(float(logprobs[yes] - logprobs[no]), abs=2e-4)
    assert len({s.score for s in found.samples}) > 1
    failed = graded.samples[0].model_copy(update={"error": "refused"})
    again = with_verifier_scores(graded.model_copy(update={"samples": (failed, *graded.samples[1:])}), verifier)
    assert again.samples[0].score is None
    assert [s.score for s in again.samples[1:]] == pytest.approx([s.score for s in found.samples[1:]], abs=1e-5)


def test_rows_of_a_verifier_choose_by_score(graded: Evaluation, verifier: Engine) -> None:
    found = with_verifier_scores(graded, verifier)
    rows = {(row.rule, row.samples): row for row in rule_results(found)}
    groups = [[s for s in found.samples if s.key == key] for key in found.problem_keys]
    for name, rule in (
        ("best by verifier", best_scored_accuracy),
        ("majority weighted by verifier", weighted_majority_accuracy),
    ):
        values = [value for group in groups if (value := rule(group)) is not None]
        assert rows[name, 6].accuracy == pytest.approx(sum(values) / len(values))
        assert rows[name, 6].interval == wilson(sum(values), len(values))
    assert not any("verifier" in row.rule for row in rule_results(graded))
    one, two = (graded.samples[0].model_copy(update={"score": s, "answered": a, "verdict": v}) for s, a, v in
                ((2.0, "a", Verdict.RIGHT), (-2.0, "b", Verdict.WRONG)))  # fmt: skip
    assert best_scored_accuracy([two, one]) == best_scored_accuracy([one, two]) == 1
    assert weighted_majority_accuracy([two, one, two]) == 1, "0.88 against 2 * 0.12"
    assert weighted_majority_accuracy([two] * 8 + [one]) == 0, "0.88 against 8 * 0.12"
    even = two.model_copy(update={"score": 2.0})
    assert best_scored_accuracy([one, even]) == 0.5, "equal scores count by their mean"
    assert best_scored_accuracy([one.model_copy(update={"score": None}), two]) == 0, "a score of -2 is better than none"
    wide = [one.model_copy(update={"score": -2000.0}), two.model_copy(update={"score": -1999.0})]
    assert best_scored_accuracy(wide) == 0 and weighted_majority_accuracy(wide) == 0.5, "both probabilities are 0"
    assert weighted_majority_accuracy([one, even]) == 0.5, "equal weights count by their mean"
    assert (
        weighted_majority_accuracy([one.model_copy(update={"score": None}), two.model_copy(update={"score": None})])
        == 0.5
    )


def test_a_model_that_is_no_verifier_is_refused(graded: Evaluation, engine: Engine, verifier: Engine) -> None:
    with pytest.raises(
        ConfigError, match=r"verifier=run: this run answers 'yes' or 'no' with a probability of \d+% only"
    ):
        with_verifier_scores(graded, engine, "run")
    assert with_verifier_scores(graded, verifier, "run").samples[0].score is not None


def test_a_question_longer_than_the_verifiers_context_is_refused(graded: Evaluation, verifier: Engine) -> None:
    long = graded.samples[0].model_copy(update={"prompt": "x" * 300})
    with pytest.raises(DataError, match=r"a prompt of \d+ and a reply of 1 tokens .* context of 192"):
        with_verifier_scores(graded.model_copy(update={"samples": (long,)}), verifier)
