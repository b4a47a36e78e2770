"""What is held out to measure on is not asked, and what it met is listed by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sums_task import SUMS, Make

from rorqual.core.errors import ConfigError, DataError
from rorqual.factory import contamination, sample_teacher
from rorqual.factory.contamination import EvalItem, EvalItemIndex, bare_words, evaluation_items
from rorqual.factory.filters import words
from rorqual.factory.problems import choose_problems


def listed(config_task: str, tmp_path: Path, local: Make, **changes: object) -> tuple[list[str], list[dict[str, str]]]:
    chosen = choose_problems(local(task=config_task, **changes))
    return [p.key for p in chosen.problems], list(chosen.contaminated_lines())


def test_a_problem_of_the_test_split_is_not_asked_and_named(local: Make, tmp_path: Path) -> None:
    keys, met = listed(SUMS.replace(":Sums", ":Leaky"), tmp_path, local)
    assert keys == ["0+1", "1+2", "2+3", "4+5", "5+6", "6+7"], "another is asked in its place"
    assert [(m["key"], m["by"]) for m in met] == [("3+4", "key")]
    assert met[0]["met"] == "task leaky: '3+4' (test.jsonl:41)"
    keys, met = listed(SUMS, tmp_path, local)
    assert keys == [f"{a}+{a + 1}" for a in range(6)] and not met
    held = tmp_path / "held.jsonl"
    held.write_text("".join(f'{{"question": "What is {a} + {a + 1}?"}}\n' for a in (1, 3, 6)), encoding="utf-8")
    keys, met = listed(SUMS, tmp_path, local, decontaminate=(str(held),))
    assert [one["key"] for one in met] == ["1+2", "3+4", "6+7"], (
        "the third is met among those in the place of the first"
    )
    assert keys == ["0+1", "2+3", "4+5", "5+6", "7+8", "8+9"], "as many as were asked for"


def test_a_training_file_that_holds_test_problems_is_named_with_its_line(local: Make, tmp_path: Path) -> None:
    rows = [{"question": f"What do {i} {i + 1} and {i * i} make?", "answer": f"#### {i}"} for i in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[2]) + "\n", encoding="utf-8")
    keys, met = listed("gsm8k", tmp_path, local, data=str(tmp_path))
    assert (
        len(keys) + len(met)
        == sum(1 for _ in choose_problems(local(task="gsm8k", data=str(tmp_path), problems=99)).problems) + 1
    )
    assert len(met) == 1 and "train.jsonl:3" in met[0]["where"] and "test.jsonl:1" in met[0]["met"]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)train.jsonl:\d: all \d problems match an evaluation set"):
        listed("gsm8k", tmp_path, local, data=str(tmp_path))


def test_every_evaluation_set_counts_and_the_tasks_own_test_split(tmp_path: Path, local: Make) -> None:
    for name, key in (("a.jsonl", "2 + 3"), ("b.jsonl", "4 + 5")):
        (tmp_path / name).write_text(json.dumps({"prompt": f"What is {key}?"}) + "\n", encoding="utf-8")
    both = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    keys, met = listed(SUMS.replace(":Sums", ":Leaky"), tmp_path, local, decontaminate=both)
    assert {m["key"] for m in met} == {"2+3", "3+4", "4+5"} and not {"2+3", "3+4", "4+5"} & set(keys)


def test_what_is_no_evaluation_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown task 'gsm9k'"):
        evaluation_items("gsm9k", 0)
    for row in ({"promt": "hi"}, {"prompt": "", "text": " ?"}, {"question": None}, {"messages": [{"role": "user"}]}):
        lines = [json.dumps({"text": "hi"}), json.dumps(row)]
        (tmp_path / "x.jsonl").write_text("\n".join(lines), encoding="utf-8")
        with pytest.raises(
            DataError, match=r"(?s)x.jsonl:2: the row has no words in the columns prompt.*, or remove the row"
        ):
            evaluation_items(str(tmp_path / "x.jsonl"), 0)
    with pytest.raises(DataError, match="no such file"):
        evaluation_items(str(tmp_path / "y.jsonl"), 0)
    (tmp_path / "x.txt").write_text("hi", encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)unknown file type '.txt'.*\.jsonl, .*\.csv"):
        evaluation_items(str(tmp_path / "x.txt"), 0)
    (tmp_path / "x.CSV").write_text("prompt\nhi\n", encoding="utf-8")
    assert [item.texts for item in evaluation_items(str(tmp_path / "x.CSV"), 0)[0]] == [("hi",)]
    assert len(evaluation_items(SUMS, 0)[0]) == 40


@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=30), st.lists(st.sampled_from("abcde"), max_size=30))
def test_meeting_is_having_a_row_of_words_in_common(item: list[str], text: list[str]) -> None:
    """Against the definition, slowly, with two words in a row."""
    evaluations = EvalItemIndex([EvalItem((" ".join(item),), "e")], 2)
    pairs = {tuple(item[i : i + 2]) for i in range(len(item) - 1)}
    slow = any(tuple(text[i : i + 2]) in pairs for i in range(len(text) - 1))
    assert (evaluations.match_text(" ".join(text)) is not None) == slow
    assert words(" ".join(item)) == item


HELD = (
    "Maria picked 14 baskets of ripe cherries before noon, then she gave 5 baskets to her uncle and sold the rest at"
    " the market for 3 coins each. How many coins did she earn?"
)
CHANGED: dict[str, str] = {
    "punctuation": HELD.replace(",", " -").replace(".", ";").replace("?", "!"),
    "case": HELD.upper(),
    "digits": HELD.replace("14", "22").replace("5", "7").replace("3 coins", "9 coins"),
    "inside other words": f"Here is a riddle for you. {HELD} Write the answer last.",
    "a part of eight words": "Yesterday she gave 5 baskets to her uncle and was glad. Why was she?",
    "a part of eight words, other numbers": "Plums cost more at the market: for 8 coins each. How many would you take?",
}
OTHER: dict[str, str] = {
    "other words": "Peter sawed 14 planks of oak in the morning and lent 5 of them to a friend. How many planks were left?",
    "seven words": "Then to her uncle and sold the rest we went. Why?",
    "the same subject": "Cherries are ripe in June. How many baskets fit in a cart that holds 14 stones of them?",
}
TOWNS = ("Arl", "Brem", "Cork", "Dover", "Emden", "Faro", "Genoa", "Hull", "Ibiza", "Jaffa", "Kiel", "Luanda")
ENDING = """
from rorqual.tasks.task import Problem, Task, Verdict

class Stories(Task):
    name = "stories"
    patterned = {patterned}

    def __init__(self, endless: bool = False) -> None:
        self.endless = endless

    def problems(self, split, seed):
        texts = {{"train": {train!r}, "dev": [], "test": {test!r}}}[split]
        yield from (Problem(f"{{split}} {{n}}", text, "1", "story") for n, text in enumerate(texts))
        while self.endless and split == "test":
            yield Problem("test 0", texts[0], "1", "story")

    def grade(self, problem, reply):
        return Verdict.RIGHT
"""


def stories(folder: Path, train: list[str], test: list[str], patterned: bool = False) -> str:
    file = folder / "stories.py"
    file.write_text(ENDING.format(train=train, test=test, patterned=patterned), encoding="utf-8")
    return f"{file}:Stories"


@pytest.mark.parametrize("where", ["own test split", "file"])
def test_a_changed_question_is_found_and_a_new_one_is_not(local: Make, tmp_path: Path, where: str) -> None:
    """By default, of the task's own test split as of any other set."""
    train = [*CHANGED.values(), *OTHER.values()]
    if where == "file":
        (tmp_path / "eval.jsonl").write_text(json.dumps({"question": HELD}), encoding="utf-8")
        task, way = (
            stories(tmp_path, train, ["Nothing that matters here?"]),
            {"decontaminate": (str(tmp_path / "eval.jsonl"),)},
        )
    else:
        task, way = stories(tmp_path, train, [HELD]), {}
    chosen = choose_problems(local(task=task, problems=99, **way))
    names = [*CHANGED, *OTHER]
    assert {names[int(p.key.split()[1])] for p, _ in chosen.met} == set(CHANGED)
    assert {names[int(p.key.split()[1])] for p in chosen.problems} == set(OTHER)


@pytest.mark.parametrize("copies", [12, 100])
@pytest.mark.parametrize("others", [0, 30])
def test_copies_of_a_test_item_do_not_make_it_an_instruction(
    local: Make, tmp_path: Path, copies: int, others: int
) -> None:
    """However many rows hold it, and beside an instruction that every problem of both splits ends with."""
    told = "Think it over step by step and then write the answer on a line of its own."
    held = [HELD, *(f"How far is it from {town} to the harbour?" for town in TOWNS)]
    train = [HELD.replace("14", f"{n + 20}").replace("5 baskets", f"{n + 3} baskets") for n in range(copies)]
    train += [f"A whale dives {n} metres and rests. Where is it?" for n in range(others)] + ["Peter sawed 14 planks."]
    task = stories(tmp_path, *([f"{text} {told}" for text in texts] for texts in (train, held)))
    chosen = choose_problems(local(task=task, problems=999))
    assert [problem.prompt for problem, _ in chosen.met] == [f"{text} {told}" for text in train[:copies]]
    assert [problem.prompt for problem in chosen.problems] == [f"{text} {told}" for text in train[copies:]]
    reply = f"{train[0]} She sold the rest."
    assert chosen.evaluations.match_text(reply) and not chosen.evaluations.match_text(f"So. {told}")


SOME = [f"How far is it from {town} to the harbour?" for town in TOWNS[:5]]
REPEATS: dict[str, list[str]] = {
    "the log of pass@16": [HELD] * 16 + SOME,
    "four copies alone": [HELD] * 4,
    "other punctuation": [HELD, HELD.upper(), HELD.replace(",", ""), HELD.replace(".", "!")],
    "other numbers": [HELD.replace("14", str(n)).replace("5 baskets", f"{n} baskets") for n in range(16)] + SOME,
    "other numbers alone": [HELD.replace("14", str(n)) for n in range(20, 36)],
}


@pytest.mark.parametrize("what", REPEATS)
@pytest.mark.parametrize("where", ["own test split", "file"])
def test_copies_in_the_evaluation_set_do_not_make_an_item_an_instruction(
    local: Make, tmp_path: Path, what: str, where: str
) -> None:
    """Neither the same words many times, nor with other numbers: its changed forms are found, and nothing counts as common."""
    held = REPEATS[what]
    rows = [json.dumps({"question": text}) for text in held]
    (tmp_path / "eval.jsonl").write_text("\n".join(rows), encoding="utf-8")
    in_file = where == "file"
    task = stories(tmp_path, [*CHANGED.values(), *OTHER.values()], ["Nothing?"] if in_file else held)
    way = {"decontaminate": (str(tmp_path / "eval.jsonl"),)} if in_file else {}
    chosen = choose_problems(local(task=task, problems=99, **way))
    assert {problem.prompt for problem, _ in chosen.met} == set(CHANGED.values())
    assert chosen.evaluations.match_text(f"So: {HELD}") and not any("share" in note for note in chosen.notes)


@pytest.mark.parametrize("count", [10, 11])
def test_what_counts_as_common_is_said_in_the_progress_and_on_the_card(
    local: Make, tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its number and an example: what more than ten different items have in common, or all of four."""
    held = [f"How far is it from {town} to the harbour of the island?" for town in TOWNS[:count]]
    task = stories(tmp_path, ["Where is the way to the harbour of the island?"], [*held, HELD])
    if count == 10:
        with pytest.raises(DataError, match="all 1 problems match"):
            choose_problems(local(task=task, filters={"overlap": 6}))
        return
    sample_teacher(
        local(task=task, problems=1, samples=1, filters={"overlap": 6}), tmp_path / "out", threads=1, quiet=False
    )
    said = (
        "decontamination: word sequences that many evaluation items share do not count as matches"
        " (1 in all, such as 'to the harbour of the island')"
    )
    card = (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    assert capsys.readouterr().err.count(f"distil: {said}\n") == 1 and card.count(said) == 1


COLUMNS: dict[str, dict[str, object]] = {
    "an empty prompt": {"prompt": "", "question": HELD},
    "a blank text": {"text": " ", "messages": [{"role": "user", "content": HELD}]},
    "an instruction in another column": {"prompt": "Answer the question.", "question": HELD},
    "a system prompt": {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HELD}]},
    "messages as the prompt": {"prompt": [{"role": "user", "content": HELD}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": HELD}]}]},
}


@pytest.mark.parametrize("what", COLUMNS)
def test_every_column_of_a_row_is_compared(local: Make, tmp_path: Path, what: str) -> None:
    (tmp_path / "eval.jsonl").write_text(json.dumps(COLUMNS[what]), encoding="utf-8")
    task = stories(tmp_path, [*CHANGED.values(), *OTHER.values()], ["Nothing that matters here?"])
    chosen = choose_problems(local(task=task, problems=99, decontaminate=(str(tmp_path / "eval.jsonl"),)))
    assert {problem.prompt for problem, _ in chosen.met} == set(CHANGED.values())


def test_columns_are_compared_each_and_joined(tmp_path: Path) -> None:
    """A short question counts inside other words, a shorter one and the joined row as a whole; the instruction of every row does not."""
    rows = [
        {"prompt": "Answer the next question:", "question": q}
        for q in ("How tall is it?", "Why?", "Who is he?", "And?")
    ]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = EvalItemIndex(evaluation_items(str(tmp_path / "eval.jsonl"), 0)[0], 8)
    assert found.match_text("Look there. How tall is it? I forgot.") and found.match_problem("why")
    assert found.match_problem("Answer the next question: And?") and not found.match_problem("And so?")
    assert not found.match_text("Answer the next question: What is a whale?")
    assert found.common == ["answer the next question"]


@pytest.mark.parametrize("how", ["endless", "patterned"])
def test_a_task_of_a_few_patterns_is_met_by_key_and_as_a_whole_alone(local: Make, tmp_path: Path, how: str) -> None:
    """Its problems share their sentences with those that are held out."""
    train = [*CHANGED.values(), *OTHER.values()]
    task = stories(tmp_path, train, [HELD], patterned=how == "patterned")
    chosen = choose_problems(local(task=task, problems=99, options={"endless": how == "endless"}))
    assert {problem.prompt for problem, _ in chosen.met} == {CHANGED["punctuation"], CHANGED["case"]}


def towns(count: int) -> list[str]:
    """So many questions of twelve words each, of which no two share eight."""
    return [" ".join(f"{name.lower()}{chr(97 + n // 26)}{chr(97 + n % 26)}" for name in TOWNS) for n in range(count)]


@pytest.mark.parametrize("count", [249, 250, 251, 400])
@pytest.mark.parametrize("where", ["own test split", "decontaminate"])
def test_each_test_problem_of_a_users_finite_task_is_compared(
    local: Make, tmp_path: Path, count: int, where: str
) -> None:
    """As a whole, and by its words inside others: however many there are."""
    held = towns(count)
    train = [held[-1], f"{held[-2]} more", *OTHER.values()]
    task = stories(tmp_path, train, held)
    way = {"task": SUMS, "decontaminate": (task,)} if where == "decontaminate" else {"task": task}
    chosen = choose_problems(local(problems=99, **way))
    matches = [chosen.evaluations.match_problem(text) is not None for text in train]
    assert matches == [True, True, False, False, False] and not any("test problems" in note for note in chosen.notes)


def test_a_cut_evaluation_set_is_said_on_the_card(local: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a task that yields its test problems too slowly, and of an endless one: the first 250 are compared."""
    monkeypatch.setattr(contamination, "DRAW_SECONDS", 0.0)
    task = stories(tmp_path, towns(251)[249:], towns(400))
    sample_teacher(local(task=task, decontaminate=("families:add",)), tmp_path / "out", threads=1, quiet=True)
    card = (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    assert re.findall("task (.*) has more test problems than the 250 compared", card) == ["stories", "families"]
    assert "1 problems were excluded" in card


def conversation(*turns: str, system: str = "") -> dict[str, object]:
    """A row of `messages`: the turns of user and assistant, and the gold answer."""
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": "system", "content": system}] if system else []
    return {"messages": messages + [{"role": role, "content": text} for role, text in zip(roles, (*turns, "four"))]}


def chosen_conversations(local: Make, folder: Path, train: list[object], test: list[object], **way: object) -> set[str]:
    """The places of the rows of `train` that are not asked, of a task whose files are `train` and `test`."""
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    chosen = choose_problems(local(task="messages", data=str(folder), problems=99, **way))
    return {line["where"].rpartition(":")[2] for line in chosen.contaminated_lines()}


@pytest.mark.parametrize("where", ["own test split", "file"])
def test_every_turn_of_a_training_conversation_is_compared(local: Make, tmp_path: Path, where: str) -> None:
    train = [
        conversation(HELD, "Twenty.", "Why is that?"),
        conversation("Tell me a riddle.", HELD, "What is the answer?"),
        conversation("Answer it, please.", system=HELD),
        conversation(f"Listen: {HELD}"),
        *[conversation(f"Tell me about {town}.", system="Be brief.") for town in TOWNS],
        *[conversation(text) for text in OTHER.values()],
    ]
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": HELD}), encoding="utf-8")
    way = {"decontaminate": (str(tmp_path / "eval.jsonl"),)} if where == "file" else {}
    test = conversation("Nothing?" if way else HELD)
    assert chosen_conversations(local, tmp_path, train, [test], **way) == {"1", "2", "3", "4"}


def test_a_shared_system_prompt_or_question_is_no_contamination(local: Make, tmp_path: Path) -> None:
    """Two system prompts of many words, each of a third of the test rows; and texts in the system prompt with one question."""
    told = [
        f"{order} and write the answer on a line of its own." for order in ("Think step by step", "Be brief, please")
    ]
    asked = "What do you think of this text?"
    rows = [
        [conversation(f"Where is {town}?", system=told[n % 2]) for n, town in enumerate(TOWNS[start : start + 6])]
        + [conversation(asked, system=f"A letter from {town}.") for town in TOWNS[start : start + 3]]
        for start in (0, 6)
    ]
    rows[1].append(conversation(asked, system="A letter from Arl!"))
    assert chosen_conversations(local, tmp_path, rows[1], rows[0]) == {"10"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What is 2 + 3?", "what is 2 + 3"),
        ("**4**, (5)", "4 5"),
        ("- an item: -5 well-known and/or", "an item - 5 well known and or"),
        ("2*3=6, x - y. 50% <think>", "2 * 3 = 6 x - y 50 think"),
        ("\u201cQuoted\u201d \u2014 text\u2026", "quoted text"),
    ],
)
def test_what_is_left_of_a_text(text: str, found: str) -> None:
    assert " ".join(bare_words(text)) == found
