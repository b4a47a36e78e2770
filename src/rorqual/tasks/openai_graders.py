"""OpenAI's grader objects, and the task of a file in OpenAI's form for reinforcement fine-tuning.

The texts of a grader are templates: `{{item.answer}}` stands for a key of a line of the file, `{{sample.output_text}}` for the reply,
and `{{sample.output_json.answer}}` for a key of a reply that is JSON. A value that is no text is written as JSON.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from rorqual.core.config import Config, Share, parse_config
from rorqual.core.conversations import read_messages, refuse_empty_prompt
from rorqual.core.errors import DataError
from rorqual.core.records import read_json
from rorqual.core.rows import DataRow, read_rows
from rorqual.tasks.file_task import FileTask
from rorqual.tasks.messages import ConversationProblem, refuse_tools
from rorqual.tasks.task import Problem, Split, Task, Verdict

PLACE = re.compile(
    r"\{\{\s*((?:item|sample\.output_json|sample\.output_text(?=\s*\}))(?:\.[^\s.\[\]{}]+|\[\d+\])*)\s*\}\}"
)
"""A place of a template, such as `{{ item.answers[0].name }}`."""
NO_VALUE = (LookupError, TypeError, ValueError)
"""What `value_at` raises if there is no value at a path."""
REFUSED = {
    "score_model": "no other model can be asked for a score",
    "label_model": "no other model can be asked for a label",
    "python": "there is no sandbox for its program",
    "cosine": "it needs OpenAI's embedding model",
    "bleu": "OpenAI does not publish its words and its smoothing",
    "gleu": "OpenAI does not publish its words",
    "meteor": "it needs WordNet",
}
"""Why a grader or a metric of OpenAI's is not offered."""
OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: math.pow,
}  # fmt: skip
FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "min": lambda first, *more: min((first, *more)), "max": lambda first, *more: max((first, *more)),
    "abs": abs, "floor": math.floor, "ceil": math.ceil, "exp": math.exp, "sqrt": math.sqrt, "log": math.log,
}  # fmt: skip
CHECKS: Mapping[str, Callable[[str, str], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


# ---- similarity


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by the bit-parallel algorithm of Hyyrö (2004)."""
    places = dict.fromkeys(other, 0)
    for place, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << place
    unmatched = whole = (1 << len(one)) - 1
    for item in other:
        found = unmatched & places[item]
        unmatched = ((unmatched + found) | (unmatched - found)) & whole
    return len(one) - unmatched.bit_count()


def text_similarity(metric: str, one: str, other: str) -> float:
    """Return the similarity of two texts, from 0 to 1.

    `fuzzy_match` is the ratio of the package rapidfuzz. `rouge_1` to `rouge_5` and `rouge_l` are the F1 scores of the package
    rouge-score, whose words consist of the letters a to z and digits.
    """
    if metric == "fuzzy_match":
        return 2 * longest_common_subsequence(one, other) / (len(one) + len(other)) if one or other else 1.0
    words = [re.findall(r"[a-z0-9]+", text.lower()) for text in (one, other)]
    if metric == "rouge_l":
        common, total = longest_common_subsequence(*words), sum(map(len, words))
    else:
        starts = range(int(metric.removeprefix("rouge_")))
        grams = [Counter(zip(*(text[start:] for start in starts), strict=False)) for text in words]
        common, total = (grams[0] & grams[1]).total(), grams[0].total() + grams[1].total()
    return 2 * common / total if total else 0.0


# ---- templates and formulas


def value_at(value: Any, path: str) -> Any:
    """Return the value at a path such as `answers[0].name` in a JSON value. Raises one of `NO_VALUE` if there is none."""
    for part in re.findall(r"[^.\[\]]+", path):
        value = value[int(part) if isinstance(value, list) else part]
    return value


def fill_template(template: str, values: Mapping[str, Any]) -> str:
    """Return the template with the values at its places. Raises one of `NO_VALUE` if a place has no value."""

    def text(place: re.Match[str]) -> str:
        found = value_at(values, place[1])
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, sort_keys=True)

    return PLACE.sub(text, template)


def _check_template(template: str) -> str:
    if "{{" in (rest := PLACE.sub("", template)):
        forms = "{{item.KEY}}, {{sample.output_text}} or {{sample.output_json.KEY}}"
        raise ValueError(f"{rest[rest.index('{{') :]!r:.60} cannot be filled. Write {forms}.")
    return template


def evaluate_formula(node: ast.expr, scores: Mapping[str, float]) -> float:
    """Return the value of a formula such as `0.5 * a + max(b, c) / 2` over the scores of graders.

    Raises SyntaxError for what is not offered in a formula, and ArithmeticError or ValueError if there is no value, as of 1 / 0.
    """
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name) if name in scores:
            return scores[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluate_formula(operand, scores)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](evaluate_formula(left, scores), evaluate_formula(right, scores))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return float(FUNCTIONS[name](*(evaluate_formula(arg, scores) for arg in args)))
    known = ", ".join((*scores, *FUNCTIONS))
    raise SyntaxError(f"'{ast.unparse(node)}' is not offered. Use + - * / ^, numbers, and the names {known}.")


# ---- graders


def _refuse(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, Mapping) else value
    if isinstance(value, Mapping) and not isinstance(kind, str):
        raise ValueError("it has no 'type'. Use string_check, text_similarity or multi.")
    if isinstance(kind, str) and kind in REFUSED:
        offered = "string_check or text_similarity" if isinstance(value, Mapping) else "fuzzy_match or rouge_l"
        raise ValueError(f"'{kind}' is not offered, because {REFUSED[kind]}. Use {offered}.")
    return value


class TextGrader(Config):
    """Base class of the graders that compare the text `input` with the text `reference`.

    A reply is right if its score is at least `pass_threshold`.
    """

    name: str
    input: Annotated[str, AfterValidator(_check_template)]
    reference: Annotated[str, AfterValidator(_check_template)]
    pass_threshold: Share = 1.0

    def score(self, values: Mapping[str, Any]) -> float:
        """Return the score, from 0 to 1. It is 0 if the reply has no value that a template names."""
        try:
            return self.compare(fill_template(self.input, values), fill_template(self.reference, values))
        except NO_VALUE:
            return 0.0

    def compare(self, text: str, reference: str) -> float:
        """Return how well the two texts agree, from 0 to 1."""
        raise NotImplementedError


class StringCheck(TextGrader):
    """Score 1 if the texts are equal (`eq`) or different (`ne`), or if `input` contains `reference`, with (`like`) or without
    (`ilike`) regard to case. Otherwise 0."""

    type: Literal["string_check"]
    operation: Literal["eq", "ne", "like", "ilike"]

    def compare(self, text: str, reference: str) -> float:
        return float(CHECKS[self.operation](text, reference))


class TextSimilarity(TextGrader):
    """Score two texts by `text_similarity`."""

    type: Literal["text_similarity"]
    evaluation_metric: Annotated[
        Literal["fuzzy_match", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"],
        BeforeValidator(_refuse),
    ]

    def compare(self, text: str, reference: str) -> float:
        return text_similarity(self.evaluation_metric, text, reference)


class Multi(Config):
    """Combine the scores of `graders` by the formula `calculate_output`."""

    type: Literal["multi"]
    name: str = ""
    graders: dict[
        str, Annotated[StringCheck | TextSimilarity, Field(discriminator="type"), BeforeValidator(_refuse)]
    ] = Field(min_length=1)
    calculate_output: str = Field(max_length=500)
    pass_threshold: Share = 1.0

    @field_validator("graders", mode="before")
    @classmethod
    def _name_one_grader(cls, value: Any) -> Any:
        """OpenAI's Python types have one grader here, OpenAI's guide graders by name."""
        return (
            {value.get("name"): value} if isinstance(value, Mapping) and isinstance(value.get("type"), str) else value
        )

    @model_validator(mode="after")
    def _check_formula(self) -> Multi:
        try:
            if "**" in self.calculate_output:
                raise SyntaxError("'**' is not offered. Use ^.")
            names = {node.id for node in ast.walk(self._formula) if isinstance(node, ast.Name)}
            if not names & self.graders.keys():
                raise SyntaxError(f"it has no score. Use at least one of the names {', '.join(self.graders)}.")
            self.evaluate(dict.fromkeys(self.graders, 0.5))
        except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
            told = error.msg if isinstance(error, SyntaxError) else error
            raise ValueError(f"'calculate_output' is no formula: {told}") from None
        except (ArithmeticError, ValueError):  # other scores may have a value
            pass
        return self

    def evaluate(self, scores: Mapping[str, float]) -> float:
        """Return the value of the formula, by `evaluate_formula`."""
        return evaluate_formula(self._formula, scores)

    @property
    def _formula(self) -> ast.expr:
        return ast.parse(self.calculate_output.strip().replace("^", "**"), mode="eval").body

    def score(self, values: Mapping[str, Any]) -> float:
        """Return the value of the formula over the graders' scores."""
        return self.evaluate({name: grader.score(values) for name, grader in self.graders.items()})


class GraderOption(Config):
    """The option of the task `openai`."""

    grader: Annotated[StringCheck | TextSimilarity | Multi, Field(discriminator="type"), BeforeValidator(_refuse)]


# ---- the task


class OpenAITask(FileTask):
    """Problems from lines such as `{"messages": [...], "answer": "4"}`, whose last message is the user's.

    `grader` is a grader object, or a JSON file with one. Its score is the reward in training, limited to 0 to 1. A reply is right if
    the score is at least `pass_threshold` (default: 1), and ungraded if the formula of a grader has no value, as 1 / 0. The file
    `data` is every split. `where` names the grader in error messages.
    """

    name = "openai"
    has_gold_replies = False

    def __init__(self, data: Path, grader: Mapping[str, Any] | str, where: str = "options") -> None:
        super().__init__(data)
        given: Any = {"grader": grader}
        if isinstance(grader, str):
            given, where = (
                {"grader": read_json(Path(grader), "the grader", "Give a file with a grader object.")},
                grader,
            )
        self.grader = parse_config(GraderOption, given, where=where).grader
        graders = self.grader.graders.values() if isinstance(self.grader, Multi) else (self.grader,)
        places = PLACE.findall(" ".join(f"{one.input} {one.reference}" for one in graders))
        self._item_places = [place for place in dict.fromkeys(places) if place.startswith("item")]

    def load(self, split: Split) -> list[Problem]:
        return [self._problem(row) for row in read_rows(self.data)]

    def _problem(self, row: DataRow) -> Problem:
        messages = read_messages(row.values.get("messages"), f"{row.where}: ")
        refuse_empty_prompt(messages, row.where)
        if messages[-1].role != "user":
            raise DataError(
                f"key 'messages': the last message is of the role '{messages[-1].role}'",
                where=row.where,
                remedy="End with the user's message, and give the right answer in a key of its own.",
            )
        refuse_tools(row)
        named = {}
        for place in self._item_places:
            try:
                named[place] = value_at({"item": row.values}, place)
            except NO_VALUE:
                raise DataError(
                    f"no key '{place.removeprefix('item.')}', which the grader names in {{{{{place}}}}}",
                    where=row.where,
                    remedy="Add the key to the line, or correct the grader.",
                ) from None
        return ConversationProblem(
            key=f"openai {json.dumps(row.values, sort_keys=True)}",
            prompt=messages[-1].label,
            answer=json.dumps(named, ensure_ascii=False),
            family=self.name,
            meta={"where": row.where, "messages": messages, "item": row.values},
        )

    def score(self, problem: Problem, reply: str) -> float | None:
        """Return the grader's score of a reply, limited to 0 to 1, or None if the score has no value."""
        sample: dict[str, Any] = {"output_text": reply}
        with suppress(ValueError):  # most replies are no JSON
            sample["output_json"] = pydantic_core.from_json(reply, allow_inf_nan=False)
        try:
            return min(1.0, max(0.0, self.grader.score({"item": problem.meta["item"], "sample": sample})))
        except (ArithmeticError, ValueError):
            return None

    def grade(self, problem: Problem, reply: str) -> Verdict:
        score = self.score(problem, reply)
        if score is None:
            return Verdict.UNGRADED
        return Verdict.RIGHT if score >= self.grader.pass_threshold - 1e-9 else Verdict.WRONG

    def reward(self, problem: Problem, reply: str, verdict: Verdict) -> float:
        return self.score(problem, reply) or 0.0


def openai_task(file: Path, grader: Mapping[str, Any], *, where: str) -> Task:
    """Return the task of a file and a grader object. `where` names the grader in error messages.

    Raises ConfigError that names the key for a grader that is not offered. A bad line raises DataError when the problems are read.
    """
    return OpenAITask(file, grader, where)
