"""OpenAI's grader objects: which are taken, what they score, and lines that they cannot grade."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.fine_tuning.reinforcement_method import ReinforcementMethod
from openai.types.graders import TextSimilarityGrader
from rouge_score.rouge_scorer import RougeScorer

from rorqual.core.errors import ConfigError, DataError
from rorqual.tasks.find import load_task
from rorqual.tasks.openai_graders import REFUSED, OpenAITask, openai_task, text_similarity

CHECK = {
    "type": "string_check",
    "name": "check",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
SIMILAR = {
    "type": "text_similarity", "name": "similar", "input": "{{ sample.output_text }}", "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
}  # fmt: skip
GUIDE = {
    "type": "multi",
    "name": "both",
    "graders": {
        "name": {
            "name": "name_grader", "type": "text_similarity", "input": "{{sample.output_json.name}}", "reference": "{{item.name}}",
            "evaluation_metric": "fuzzy_match", "pass_threshold": 0.9,
        },
        "email": {
            "name": "email_grader", "type": "string_check", "input": "{{sample.output_json.email}}", "reference": "{{item.email}}",
            "operation": "eq",
        },
    },
    "calculate_output": "(name + email) / 2",
}  # fmt: skip
"""The example of OpenAI's guide to graders."""
INPUT = [{"role": "user", "content": "Score {{sample.output_text}}"}]
MODELS = {
    "score_model": {"type": "score_model", "name": "s", "model": "gpt-4o", "input": INPUT},
    "python": {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0"},
}


def row(**keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "2+2?"}], **keys}


def file_of(folder: Path, *rows: Any) -> Path:
    path = folder / "rft.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


@pytest.fixture
def scored(tmp_path: Path) -> Any:
    """A function of a grader, a reply and the keys of a line: the reward and the verdict."""

    def score(grader: Any, reply: str, **keys: Any) -> tuple[float, str]:
        task = openai_task(file_of(tmp_path, row(**keys)), grader, where="method.grader")
        (problem,) = task.problems("train", 0)
        verdict = task.grade(problem, reply)
        return task.reward(problem, reply, verdict), verdict.value

    return score


# ---- what is taken


@pytest.mark.parametrize("grader", [CHECK, SIMILAR, {**GUIDE, "graders": CHECK, "calculate_output": "check"}])
def test_a_grader_of_the_clients_types_is_read_as_they_read_it(grader: dict[str, Any], scored: Any) -> None:
    theirs = ReinforcementMethod.model_validate({"grader": grader}).grader.model_dump(exclude_unset=True)
    ours = OpenAITask(Path("none.jsonl"), theirs).grader
    assert scored(theirs, "four", answer="four") == (1.0, "right") and scored(theirs, "xxxx", answer="four") == (
        0.0,
        "wrong",
    )
    if grader["type"] != "multi":
        assert ours.model_dump(exclude_unset=True) == grader


def test_each_type_and_metric_is_offered_or_refused_by_name() -> None:
    types = {
        get_args(one.model_fields["type"].annotation)[0]
        for one in get_args(ReinforcementMethod.model_fields["grader"].annotation)
    }
    metrics = get_args(TextSimilarityGrader.model_fields["evaluation_metric"].annotation)
    asked = [MODELS.get(kind, {"type": kind}) for kind in types] + [
        {**SIMILAR, "evaluation_metric": name} for name in metrics
    ]
    inside = [{**GUIDE, "graders": {"a": one}, "calculate_output": "a"} for one in MODELS.values()]
    refused = set()
    for grader in asked + inside:
        try:
            openai_task(Path("none.jsonl"), grader, where="method.grader")
        except ConfigError as error:
            assert error.where == "method.grader"
            refused |= {
                name for name, why in REFUSED.items() if f"'{name}' is not offered, because {why}" in error.what
            }
    assert refused == {"score_model", "python", "cosine", "bleu", "gleu", "meteor"} == {*REFUSED} - {"label_model"}


BAD = [
    ({**CHECK, "operation": "contains"}, "operation"),
    ({**CHECK, "refrence": "x"}, "unknown key 'grader.string_check.refrence'"),
    ({key: value for key, value in CHECK.items() if key != "reference"}, "reference"),
    ({**CHECK, "reference": "{{item.answer}"}, "'{{item.answer}' cannot be filled"),
    ({**CHECK, "input": "{{sample.output_tools}}"}, "output_tools"),
    ({**CHECK, "input": "{{sample.output_texts}}"}, "output_texts"),
    ({**CHECK, "type": "string_chek"}, "string_chek"),
    ({**GUIDE, "graders": {}}, "graders"),
    ({**GUIDE, "graders": {"name": GUIDE, "email": CHECK}}, "graders.name"),
    *(
        ({**GUIDE, "calculate_output": formula}, "'calculate_output' is no formula")
        for formula in (
            "(name + mail) / 2", "name +", "", "name if email else 0", "name.real", "min(name, key=abs)", "__import__('os')", "pow(name, 2)",
            "min()", "sqrt(name, email)", "name % 2", "name ** 2", "'a' * 9", "min", "0.5 * 2",
        )
    ),
    ({**GUIDE, "calculate_output": "name + " * 99 + "email"}, "calculate_output"),
]  # fmt: skip


@pytest.mark.parametrize(("grader", "said"), BAD)
def test_what_is_wrong_with_a_grader_is_named(grader: dict[str, Any], said: str) -> None:
    """Their nearest valid twins are graded below."""
    with pytest.raises(ConfigError) as refused:
        openai_task(Path("none.jsonl"), grader, where="method.grader")
    assert "<unknown>" not in str(refused.value)
    assert refused.value.where == "method.grader" and said in refused.value.what


# ---- scores


@pytest.mark.parametrize(("operation", "holds"), [("eq", "1000"), ("ne", "0111"), ("like", "1100"), ("ilike", "1110")])
def test_string_checks(operation: str, holds: str, scored: Any) -> None:
    """The input is searched for the reference, and not the other way round."""
    for reply, held in zip(("Four", "Four!", "four", "Fou"), holds, strict=True):
        assert scored({**CHECK, "operation": operation}, reply, answer="Four")[0] == float(held), reply


WORDS = st.lists(st.sampled_from(["a", "B", "bé", "c3", "-"]), max_size=9).map(" ".join)


@given(WORDS, WORDS)
@example("", "")
def test_rouge_is_that_of_the_package(one: str, other: str) -> None:
    theirs = RougeScorer([f"rouge{kind}" for kind in "12345L"]).score(other, one)
    for name, score in theirs.items():
        assert text_similarity(f"rouge_{name[-1].lower()}", one, other) == pytest.approx(score.fmeasure)


@pytest.mark.parametrize(
    ("one", "other", "score"),
    [("this is a test", "this is a test!", 28 / 29), ("fuzzy wuzzy was a bear", "wuzzy fuzzy was a bear", 10 / 11),
     ("", "", 1), ("", "a", 0), ("abcd", "badc", 0.5)],
)  # fmt: skip
def test_a_fuzzy_match_is_the_ratio_of_rapidfuzz(one: str, other: str, score: float) -> None:
    """The first two are examples of its documentation (96.55 and 90.91)."""
    assert (
        text_similarity("fuzzy_match", one, other) == text_similarity("fuzzy_match", other, one) == pytest.approx(score)
    )


FORMULAS = {
    "0.5 * a + 0.5*b": 0.375, "min(a, b) - max(b, 0.1)": 0.0, "-a + 1 - b": 0.25, "a ^ 2 / b - 0.5": 0.5, "min(b)": 0.25,
    "floor(a) + ceil(b) - sqrt(b)": 0.5, "exp(0) - abs(-b)": 0.75, "log(exp(b))": 0.25, "a + 1": 1.0, "a - 9": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas(formula: str, scored: Any) -> None:
    """`a` scores 0.5 and `b` 0.25. The value is limited to 0 to 1."""
    graders = {name: {**SIMILAR, "input": text} for name, text in {"a": "ab{{item.end}}", "b": "a"}.items()}
    graders["b"]["reference"] = "abcdefg{{item.end}}"
    found = scored({**GUIDE, "graders": graders, "calculate_output": formula}, "?", answer="cabcde", end="")
    assert found[0] == pytest.approx(FORMULAS[formula])


def test_the_guides_example_and_a_reply_that_is_no_json(scored: Any) -> None:
    keys = {"name": "John Doe", "email": "john@x.org"}
    for reply, score in [
        (keys, 1.0),
        ({**keys, "email": "John@x.org"}, 0.5),
        ({**keys, "name": "John"}, (2 * 4 / 12 + 1) / 2),
        ({"email": keys["email"]}, 0.5),
        ([], 0.0),
    ]:
        assert scored(GUIDE, json.dumps(reply), **keys)[0] == pytest.approx(score), reply
    assert scored(GUIDE, "John Doe, john@x.org", **keys) == (0.0, "wrong")


@pytest.mark.parametrize(
    ("place", "said"),
    [("sample.output_json.list[1].no-1", "7"), ("sample.output_json.yes", "true"), ("sample.output_json.none", "null"),
     ("sample.output_json.list", '["é", {"no-1": 7}]'), ("sample.output_text", '{"yes": true, "none": null, "list": ["é", {"no-1": 7}]}')],
)  # fmt: skip
def test_places_are_filled(place: str, said: str, scored: Any) -> None:
    reply = '{"yes": true, "none": null, "list": ["é", {"no-1": 7}]}'
    for spaced in (f"<{{{{{place}}}}}>", f"<{{{{  {place} }}}}>"):
        assert scored({**CHECK, "input": spaced}, reply, answer=f"<{said}>") == (1.0, "right")
    assert scored({**CHECK, "input": f"{{{{{place}}}}}", "operation": "ne"}, "{", answer=said)[0] == float(
        place == "sample.output_text"
    )


def test_a_score_without_a_value_is_ungraded_and_a_threshold_decides_what_is_right(scored: Any) -> None:
    grader = {**GUIDE, "graders": {"a": CHECK}, "calculate_output": "1 / a"}
    assert scored(grader, "4", answer="4") == (1.0, "right") and scored(grader, "5", answer="4") == (0.0, "ungraded")
    low = {**SIMILAR, "pass_threshold": 0.6}
    assert [scored(low, reply, answer="abcd")[1] for reply in ("ab", "a")] == ["right", "wrong"]
    assert scored(SIMILAR, "ab", answer="abcd") == (pytest.approx(2 / 3), "wrong")


# ---- lines


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (row(anwser="4"), "no key 'answer', which the grader names in {{item.answer}}"),
        ({"answer": "4"}, "key 'messages'"),
        ({"messages": [], "answer": "4"}, "key 'messages'"),
        ({"messages": [{"role": "user", "content": " "}], "answer": "4"}, "an empty prompt"),
        ({"messages": [*row()["messages"], {"role": "assistant", "content": "4"}], "answer": "4"}, "the last message is of the role"),
        (row(answer="4", tools=[{"type": "function"}]), "key .tools.: graded replies call no tools"),
        (["4"], "not an object"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_graded_is_named(line: Any, said: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, row(answer="4"), line)
    with pytest.raises(DataError, match=f"rft.jsonl:2.*{said}"):
        list(openai_task(path, CHECK, where="g").problems("train", 0))
    path = file_of(tmp_path, row(answer="4"), row(answer="5", tools=[]))
    assert len(list(openai_task(path, CHECK, where="g").problems("train", 0))) == 2


def test_the_task_has_a_name_its_grader_may_be_a_file_and_each_line_is_a_problem(tmp_path: Path) -> None:
    path, grader = file_of(tmp_path, row(answer="4"), row(answer="5"), row(answer="4")), tmp_path / "grader.json"
    grader.write_text(json.dumps(CHECK), encoding="utf-8")
    for written, split in product((CHECK, str(grader)), ("train", "test")):
        problems = list(load_task("openai", data=path, options={"grader": written}).problems(split, 0))  # type: ignore[arg-type]
        assert len({problem.key for problem in problems}) == 2 and {
            problem.messages[0].role for problem in problems
        } == {"system"}
        assert {problem.answer for problem in problems} == {'{"item.answer": "4"}', '{"item.answer": "5"}'}
    grader.write_text(json.dumps({**CHECK, "name": 1}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"grader.json: key 'grader.string_check.name'"):
        load_task("openai", data=path, options={"grader": str(grader)})
