"""Families: right steps, canonical keys, honest sizes and chances, splits that never share a problem."""

from __future__ import annotations

import itertools
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from rorqual.core.errors import ConfigError, TaskError
from rorqual.evals.evaluating import pick_problems
from rorqual.tasks.families import FAMILIES, NAMES, Families, Family
from rorqual.tasks.task import Problem, Verdict, split_of

ALL = pytest.mark.parametrize("family", FAMILIES, ids=NAMES)


def samples(family: Family, n: int, *, seed: int = 0, difficulty: int | None = None) -> list[Problem]:
    rng = random.Random(seed)
    levels = [difficulty] if difficulty else [*family.easy, *family.hard]
    return [family.sample(rng, levels[i % len(levels)]) for i in range(n)]


# Independent solvers: from the prompt alone, by another way than the step writers.


def solve_swap(question: str) -> str:
    start, *pairs = question.split()
    letters = list(start)
    for a, b in pairs:
        i, j = letters.index(a), letters.index(b)
        letters[i], letters[j] = letters[j], letters[i]
    return "".join(letters)


def solve_chain(question: str) -> str:
    nested = question[0]
    for op, n in re.findall(r"([-+*])(\d)", question):
        nested = f"({nested}{op}{n})"
    return str(eval(nested) % 10)


def solve_kk(question: str) -> str:
    def true(text: str, world: dict[str, bool]) -> bool:
        code = text.replace("=", "==").replace("&", " and ").replace("|", " or ")
        code = re.sub(r"-([ABC])", r"(not \1)", code)
        return bool(eval(code, {}, world))

    worlds = [dict(zip("ABC", bits)) for bits in itertools.product([False, True], repeat=3)]
    fit = [w for w in worlds if all(true(s[2:], w) == w[s[0]] for s in question.split())]
    assert len(fit) == 1, question
    return "".join(str(int(fit[0][p])) for p in "ABC")


SOLVERS: dict[str, Callable[[str], str]] = {
    "add": lambda q: str(sum(map(int, q.split("+")))),
    "sub": lambda q: str(int(q.split("-")[0]) - int(q.split("-")[1])),
    "chain": solve_chain,
    "gcd": lambda q: str(math.gcd(*map(int, q.split()))),
    "mod": lambda q: str(int(q.split("%")[0]) % int(q.split("%")[1])),
    "swap": solve_swap,
    "count": lambda q: str(q[2:].count(q[0])),
    "kk": solve_kk,
}


@ALL
def test_answer_is_what_an_independent_solver_finds(family: Family) -> None:
    for problem in samples(family, 400):
        name, _, question = problem.prompt.partition(" ")
        assert name == family.name == problem.family == problem.key.split()[0]
        assert SOLVERS[name](question) == problem.answer
        assert problem.steps is not None and problem.steps.rpartition("=")[2] == problem.answer
        assert family.grade(problem, problem.answer) is Verdict.RIGHT


def step_holds(name: str, step: str, problem: Problem) -> bool:
    """Whether one step is true by itself: of what stands before `=` follows what stands after it."""
    left, _, right = step.partition("=")
    if name == "add":
        return eval(left) == int(right) and len(right) == 2
    if name == "sub":
        return (eval(left) % 10, "b" if eval(left) < 0 else ".") == (int(right[0]), right[1])
    if name == "chain":
        return eval(left) % 10 == int(right)
    a, b = left.split("%")
    return int(a) % int(b) == int(right)


@pytest.mark.parametrize("name", ["add", "sub", "chain", "gcd", "mod"])
def test_each_step_is_true_and_follows_from_the_one_before(name: str) -> None:
    family = Families(names=(name,)).families[name]
    for problem in samples(family, 300):
        steps = [s for s in (problem.steps or "").split() if not s.startswith("=")]
        assert all(step_holds(name, s, problem) for s in steps)
        for before, after in itertools.pairwise(steps):
            if name == "add":
                assert after.split("=")[0][-1] == before.split("=")[1][0]  # the carry
            elif name == "sub":
                assert after.split("=")[0][-1] == str(int(before.endswith("b")))
            elif name in ("chain", "mod"):
                assert after[0] == before[-1]


def test_swap_writes_the_string_after_each_swap() -> None:
    for problem in samples(Families(names=("swap",)).families["swap"], 300):
        state, *pairs = problem.prompt.split()[1:]
        steps = (problem.steps or "").split()
        for pair, step in zip(pairs, steps, strict=True):
            state = solve_swap(f"{state} {pair}")
            assert step == f"{pair}={state}"


def test_count_writes_a_running_tally() -> None:
    for problem in samples(Families(names=("count",)).families["count"], 300):
        letter, text = problem.prompt.split()[1].split(":")
        tallies = re.findall(r"([a-z])([a-z])(\d+)", (problem.steps or "").split()[0])
        assert "".join(c for _, c, _ in tallies) == text and {asked for asked, _, _ in tallies} == {letter}
        assert [int(n) for _, _, n in tallies] == [text[: i + 1].count(letter) for i in range(len(text))]


def test_kk_tries_the_cases_in_order_and_stops_each_at_its_first_contradiction() -> None:
    for problem in samples(Families(names=("kk",)).families["kk"], 300):
        said = problem.prompt.split()[1:]
        tried = re.findall(r"([01]{3}):([01]+)(x?)", (problem.steps or "").split()[0])
        assert [c for c, _, _ in tried] == [f"{i:03b}" for i in range(7, 7 - len(tried), -1)]
        assert [x for _, _, x in tried] == ["x"] * (len(tried) - 1) + [""]
        for case, truths, contradiction in tried:
            speakers = [case["ABC".index(s[0])] for s in said[: len(truths)]]
            agree = [t == s for t, s in zip(truths, speakers, strict=True)]
            assert agree == [True] * (len(agree) - 1) + [not contradiction]
            assert contradiction or len(truths) == len(said)


@ALL
def test_more_than_a_million_distinct_problems(family: Family) -> None:
    assert sum(family.count_keys(d) for d in [*family.easy, *family.hard]) > 1_000_000


@pytest.mark.parametrize(
    ("name", "difficulty", "draws"),
    [("add", 2, 25_000), ("sub", 2, 25_000), ("gcd", 1, 12_000), ("mod", 2, 4000), ("swap", 1, 6000)],
)
def test_size_is_the_number_of_keys_that_ever_come(name: str, difficulty: int, draws: int) -> None:
    family = Families(names=(name,)).families[name]
    keys = {p.key for p in samples(family, draws, difficulty=difficulty)}
    assert family.count_keys(difficulty) * 0.95 < len(keys) <= family.count_keys(difficulty)


def test_sizes_of_swap_and_kk_against_enumeration() -> None:
    swap = Families(names=("swap",)).families["swap"]
    from rorqual.tasks.families.swap import PAIRS, _canonical_pair_order

    words = {tuple(_canonical_pair_order(list(word))) for word in itertools.product(PAIRS, repeat=3)}
    assert swap.count_keys(3) == 120 * len(words)
    kk = Families(names=("kk",)).families["kk"]
    keys = {p.key for p in samples(kk, 8000, difficulty=1)}
    assert (
        kk.count_keys(1) * 0.95 < len(keys) < kk.count_keys(1) * 1.1
    )  # a bound from below: a few problems are their own renaming


# Twins: the same problem in another dress has the same key; another problem has another.


@pytest.mark.parametrize(("name", "difficulty"), [("add", 2), ("gcd", 2), ("swap", 2), ("kk", 1), ("chain", 2)])
def test_twins_share_a_key_and_others_do_not(name: str, difficulty: int) -> None:
    """Keys partition the prompts exactly as an independent description of `the same problem` does."""
    family = Families(names=(name,)).families[name]
    by_key: dict[str, set[object]] = {}
    by_form: dict[object, set[str]] = {}
    for p in samples(family, 3000, difficulty=difficulty):
        form = FORMS[name](p.prompt.partition(" ")[2])
        by_key.setdefault(p.key, set()).add(form)
        by_form.setdefault(form, set()).add(p.key)
    assert all(len(forms) == 1 for forms in by_key.values())
    assert all(len(keys) == 1 for keys in by_form.values())


def form_swap(question: str) -> object:
    start, one, two = question.split()
    pairs = [frozenset(one), frozenset(two)]
    return (start, frozenset(pairs) if not pairs[0] & pairs[1] else tuple(pairs))


def form_kk(question: str) -> object:
    """Renamings as a set of all six dresses, each a multiset of (speaker, op, unordered parts)."""
    dresses = []
    for names in itertools.permutations("ABC"):
        said = question.translate(str.maketrans("ABC", "".join(names))).split()
        parsed = [
            (s[0], re.sub(r"[-ABC]", "", s[2:]), frozenset(Counter(re.findall(r"-?[ABC]", s[2:])).items()))
            for s in said
        ]
        dresses.append(frozenset(Counter(parsed).items()))
    return frozenset(dresses)


def form_chain(question: str) -> object:
    first = frozenset((question[0], question[2])) if question[1] != "-" else (question[0], question[2])
    return (question[1], first, question[3:])


FORMS: dict[str, Callable[[str], object]] = {
    "add": lambda q: tuple(sorted(q.split("+"))),
    "gcd": lambda q: frozenset(q.split()),
    "swap": form_swap,
    "kk": form_kk,
    "chain": form_chain,
}


# The mixture.


def take(n: int, split: str = "train", seed: int = 0, **options: object) -> list[Problem]:
    return list(itertools.islice(Families(**options).problems(split, seed), n))  # type: ignore[arg-type]


def test_splits_are_disjoint_and_by_key() -> None:
    train, dev, test = take(4000), take(300, "dev"), take(300, "test")
    for split, problems in {"train": train, "dev": dev, "test": test}.items():
        assert {split_of(p.key) for p in problems} == {split}
    keys = [{p.key for p in problems} for problems in (train, dev, test)]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert len(keys[1]) == 300 and len(keys[2]) == 300  # held-out problems do not repeat


def test_families_are_even_and_hard_is_a_share() -> None:
    problems = take(8000, hard=0.3)
    assert set(Counter(p.family for p in problems).values()) == {1000}
    assert 0.28 < sum(p.level == "hard" for p in problems) / 8000 < 0.32
    assert {p.level for p in take(50, hard=1.0)} == {"hard"} and {p.level for p in take(50, hard=0.0)} == {"easy"}
    assert {p.family for p in take(20, names=("add",), hard=1.0)} == {"add"}


def shares(family: Family, level: range) -> dict[int, float]:
    """How often each difficulty comes: as often as its number of problems, up to 30,000, has it."""
    sizes = {difficulty: min(family.count_keys(difficulty), 30_000) for difficulty in level}
    return {difficulty: size / sum(sizes.values()) for difficulty, size in sizes.items()}


def check_shares(problems: list[Problem], expected: dict[int, float]) -> None:
    """Five deviations of a binomial: none of some hundred shares is off by more by luck."""
    found = Counter(p.meta["difficulty"] for p in problems)
    for difficulty, share in expected.items():
        deviation = math.sqrt(share * (1 - share) * len(problems))
        assert abs(found[difficulty] - share * len(problems)) <= 5 * deviation + 1, (difficulty, len(problems), found)


@ALL
def test_problems_do_not_get_harder_as_more_are_asked(family: Family) -> None:
    """The first n of a held-out level have the difficulties of the first 10 n, and every key once."""
    few, many = (40, 400) if family.name != "kk" else (20, 160)
    problems = pick_problems(Families((family.name,), hard=0.0), "test", many, 0, per_family=True)
    assert len({p.key for p in problems}) == len(problems) == many
    for count in (few, many):
        check_shares(problems[:count], shares(family, family.easy))
    assert pick_problems(Families((family.name,), hard=0.0), "test", few, 0, per_family=True) == problems[:few]


def test_one_seed_gives_one_stream_in_every_process() -> None:
    code = (
        "import itertools, hashlib; from rorqual.tasks.families import Families;"
        "ps = itertools.islice(Families(hard=0.5).problems('test', 7), 80);"
        "print(hashlib.sha256(repr([(p.key, p.prompt, p.steps) for p in ps]).encode()).hexdigest())"
    )
    prints = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert prints[0] == prints[1]
    assert take(40, seed=1) == take(40, seed=1) != take(40, seed=2)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (" 62 \n", "right"),
        ("062", "right"),
        ("6 2", "wrong"),
        ("", "wrong"),
        ("=62", "wrong"),
        ("62.0", "wrong"),
        ("٦٢", "wrong"),
    ],
)
def test_grader_forgives_white_space_only(reply: str, verdict: str) -> None:
    task = Families()
    problem = Problem(key="add 20+42", prompt="add 20+42", answer="62", family="add")
    assert task.grade(problem, reply).value == verdict


def test_a_mixture_judges_kept_problems_of_every_family() -> None:
    swap = take(1, names=("swap",))[0]
    assert Families(names=("add",)).grade(swap, swap.answer) is Verdict.RIGHT
    with pytest.raises(TaskError, match="no family 'swop'"):
        Families().grade(Problem(key="", prompt="", answer="", family="swop"), "")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"names": ("ad",)}, "Did you mean 'add'"), ({"names": ()}, "names is empty"), ({"names": ("add", "add")}, "repeats a name"),
     ({"hard": 1.5}, "1.5"), ({"hard": "much"}, "much"), ({"hard": True}, "True"),
     ({"plain": -0.1}, "families.plain")],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        Families(**options)  # type: ignore[arg-type]
    Families(names=("add",), hard=0.5)  # their nearest valid twin
