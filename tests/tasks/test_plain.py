"""Plain problems: the small numbers, short words and forms that a user types first, and the prompts that a model must decline."""

from __future__ import annotations

import importlib.util
import itertools
import random
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from rorqual.core.example_prompts import MOST, choose_prompts, is_unlike_prompts
from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.recipes.quickstart import FULL, TASK
from rorqual.recipes.sft import sft
from rorqual.tasks.families import FAMILIES, Families
from rorqual.tasks.families.outside import LONGEST, SENTENCE, Outside
from rorqual.tasks.task import Problem, Verdict, split_of
from rorqual.train.loop import fit
from rorqual.train.sources.worked import worked_sample

NAMES = tuple(TASK.partition(":")[2].split(","))
CALCULATION = re.compile(r"(?P<before>|add |sub |mod |What is )(\d+)( ?)([-+%])\3(\d+)(?P<after>\??)")
"""The forms that the documentation names: `add 12+34`, `12+34`, `12 + 34` and `What is 12+34?`, likewise with - and %."""


def draw(count: int, split: str = "train", **options: object) -> list[Problem]:
    return list(itertools.islice(Families(NAMES, **options).problems(split, 0), count))  # type: ignore[arg-type]


def answer(prompt: str) -> str | None:
    """The answer of a calculation in a documented form, by another way than the families; None for any other prompt."""
    found = CALCULATION.fullmatch(prompt)
    if found is None:
        return None
    _, one, _, sign, other, _ = found.groups()
    name = {"+": "add ", "-": "sub ", "%": "mod "}[sign]
    if found["before"] not in ("", name, "What is ") or (found["after"] == "?") != (found["before"] == "What is "):
        return None
    a, b = int(one), int(other)
    return (
        None
        if sign == "%" and b not in (2, 3, 5, 7, 9)
        else str({"+": a + b, "-": a - b, "%": a % b if b else 0}[sign])
    )


@pytest.fixture(scope="module")
def mix() -> list[Problem]:
    """What the quickstart's teacher is trained on."""
    return draw(6000, hard=FULL.sft_hard, plain=FULL.sft_plain)


def test_the_mix_has_every_form_and_small_and_uneven_numbers(mix: list[Problem]) -> None:
    for name, sign in (("add", r"\+"), ("sub", "-"), ("mod", "%")):
        prompts = [problem.prompt for problem in mix if problem.family == name and problem.level == "plain"]
        for form in (rf"{name} \d+{sign}\d+", rf"\d+{sign}\d+", rf"\d+ {sign} \d+", rf"What is \d+{sign}\d+\?", rf"{name} \d {sign} \d",
                     rf"\d{{3}}{sign}\d", rf"What is \d ?{sign} ?\d\?"):  # fmt: skip
            assert any(re.fullmatch(form, prompt) for prompt in prompts), form
    shares = Counter((problem.family, problem.level) for problem in mix)
    of_family = len(mix) / (len(NAMES) + FULL.sft_plain)
    for name in NAMES:
        assert abs(shares[name, "plain"] / of_family - FULL.sft_plain) < 0.06, name
        assert abs(shares[name, "hard"] / of_family - (1 - FULL.sft_plain) * FULL.sft_hard) < 0.06, name
    assert abs(shares["outside", "plain"] / of_family - FULL.sft_plain) < 0.06


def test_plain_calculations_are_answered_rightly(mix: list[Problem]) -> None:
    for problem in mix:
        if problem.level == "plain" and problem.family in ("add", "sub", "mod"):
            assert answer(problem.prompt) == problem.answer, problem.prompt
            assert (problem.steps or "").rpartition("=")[2] == problem.answer
            key = problem.key.removeprefix(f"{problem.family} ")
            assert answer(key) == problem.answer and split_of(problem.key) == "train"


@pytest.mark.parametrize(
    ("family", "question", "steps"),
    [("add", "5+12", "5+2+0=07 0+1+0=01 =17"), ("sub", "10-1", "0-1-0=9b 1-0-1=0. =9"), ("mod", "7%3", "07%3=1 =1"),
     ("swap", "ba ab", "ab=ab"), ("count", "a:aba", "aa1ab1aa2 =2"), ("kk", "A:-A|-B", "11:0x10:1 =10")],
)  # fmt: skip
def test_steps_of_plain_problems(family: str, question: str, steps: str) -> None:
    """A missing digit is 0; words may be short; a puzzle about two people tries four cases."""
    [made] = [one for one in FAMILIES if one.name == family]
    drawn = map(made.sample, itertools.repeat(random.Random(0)), itertools.repeat(0))
    assert next(problem for problem in drawn if problem.prompt == f"{family} {question}").steps == steps


def test_puzzles_about_two_people_have_one_solution(mix: list[Problem]) -> None:
    plain = [problem for problem in mix if problem.family == "kk" and problem.level == "plain"]
    for problem in plain:
        statements = [text.split(":") for text in problem.prompt.split()[1:]]
        fit_cases = []
        for a, b in itertools.product((True, False), repeat=2):
            role = {"A": a, "B": b}
            codes = (
                re.sub(r"-([AB])", r"(not \1)", said.replace("=", "==").replace("&", " and ").replace("|", " or "))
                for _, said in statements
            )
            if all(eval(code, {}, role) == role[speaker] for code, (speaker, _) in zip(codes, statements, strict=True)):
                fit_cases.append(f"{a:d}{b:d}")
        assert fit_cases == [problem.answer], problem.prompt
    assert {problem.answer for problem in plain} == {"00", "01", "10", "11"}


def test_what_lies_outside_has_one_sentence_as_its_answer(mix: list[Problem]) -> None:
    outside, task = [problem for problem in mix if problem.family == "outside"], Families(NAMES, plain=0.5)
    assert {problem.answer for problem in outside} == {SENTENCE}
    assert all(name in SENTENCE for name in NAMES)
    prompts = [problem.prompt for problem in outside]
    known = [prompt for prompt in prompts if answer(prompt) is not None]
    assert all("-" in prompt or max(map(len, re.findall(r"\d+", prompt))) > 7 for prompt in known)
    assert all(int(answer(prompt) or 0) < 0 for prompt in known if not re.search(r"\d{8}", prompt))
    assert max(len(prompt.encode()) for prompt in prompts) <= LONGEST
    for part in (r"\d+ ?[*/x^] ?\d+", r"\d+ ?- ?\d+", r".*\d{8}.*", r".*[\u4e00-\u9fa0].*", r".*[\U0001f300-\U0001f650].*",
                 r"[A-Z][a-z]+ .*[?.!]", r"(swap|count|kk) [^ab:]+", r".*\d+ ?[-+%] ?\d+ ?[-+*/%] ?\d+.*"):  # fmt: skip
        assert any(re.fullmatch(part, prompt) for prompt in prompts), part
    assert task.grade(outside[0], f" {SENTENCE}\n") is Verdict.RIGHT and task.grade(outside[0], "46") is Verdict.WRONG
    assert task.versions["outside"] == outside[0].version and "outside" not in Families(NAMES).versions


def test_without_plain_problems_the_families_draw_what_they_drew() -> None:
    """Experiments of the lab and stored results stay comparable."""
    drawn = draw(60, "test", hard=0.5)
    assert drawn == draw(60, "test", hard=0.5, plain=0.0)
    assert [problem.prompt for problem in drawn[:6]] == PROMPTS
    assert {problem.level for problem in drawn} == {"easy", "hard"}


PROMPTS = [
    "add 320+126",
    "swap edcba ce da ed bd",
    "count e:lmkovqeoql",
    "kk C:-A A:-C C:-C=A B:B|C",
    "sub 754-716",
    "mod 9721%9",
]
"""The first problems of seed 0 before there were plain problems."""


def test_every_problem_of_the_mix_fits_the_rows_of_the_quickstart(mix: list[Problem]) -> None:
    chat = chat_format(Tokenizer.byte_level())
    assert max(len(worked_sample(problem, chat, think=True)) for problem in mix) <= FULL.row
    assert max(len(chat.prompt(problem.messages, "auto")) for problem in mix) + FULL.max_tokens <= FULL.row


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks"
    spec = importlib.util.spec_from_file_location("first_prompts", path / "first_prompts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path))
        spec.loader.exec_module(module)
    return module


def test_the_benchmark_asks_what_training_teaches_and_declines_what_it_never_drew(benchmark: ModuleType) -> None:
    asked = benchmark.simple_prompts()
    assert {name: len(prompts) for name, prompts in asked.items()} == dict.fromkeys(NAMES, 30)
    for name in ("add", "sub", "mod"):
        assert {prompt: answer(prompt) for prompt in asked[name]} == asked[name]
    swapped, counted = (Counter(len(prompt.split()[1]) for prompt in asked[name]) for name in ("swap", "count"))
    assert set(swapped) == {2, 3, 5} and max(counted) == 6, "a letter, a colon and four letters"
    outside = set(benchmark.OUTSIDE)
    assert len(outside) == 60 and {prompt for prompt in outside if answer(prompt)} == {
        "123456789012+987654321098",
        "99999999999-1",
    }
    made, rng = Outside(), random.Random(1)
    assert not {made.sample(rng, 0).prompt for _ in range(20_000)} & outside


def test_a_run_shows_examples_of_every_form_and_none_to_decline(tmp_path: Path) -> None:
    fit(sft(task=TASK, size="tiny", steps=1, rows=2, options={"plain": 0.4}), tmp_path / "run", quiet=True)
    prompts = RunDir(tmp_path / "run").example_prompts()
    assert len(prompts) == MOST and prompts == choose_prompts(prompts)
    assert not [prompt for prompt in prompts if answer(prompt) is None and prompt.split()[0] not in NAMES]
    for text in ("1+2", "12 - 3", "7%3", "What is 12+34?", "add 1+2", "sub 100-1", "count a:cat", "swap ab ab"):
        assert not is_unlike_prompts(text, prompts), text
    for text in ("hello", "你好", "12/4", "mul 3*4"):
        assert is_unlike_prompts(text, prompts), text
