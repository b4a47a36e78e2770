"""Problems in a long text of random letters and digits: find a pair, copy a number, or solve a problem after the text."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rorqual.core.errors import ConfigError
from rorqual.tasks.families import NAMES, Families
from rorqual.tasks.names import check_names
from rorqual.tasks.task import Problem, Split, Task, Verdict, split_of

CHARACTERS = string.ascii_letters + string.digits
DIGITS = 8
"""Number of digits of the number to copy."""
OWN = ("needle", "copy")
VERSION = 2


class LongTextTask(Task):
    """An endless mixture of the problems in `names`, with equal shares. A prompt has `length` characters.

    - `needle`: the text contains `pairs` pairs such as `(kv)`, spread evenly. The question names a key, and the answer
      is the pair with this key, such as `(kv)`. Keys, values and the text between the pairs use the same 62 characters.
    - `copy`: the answer is the number in brackets. The text around the brackets consists of letters.
    - `count` or the name of another family: a problem of this family (see the task `families`) follows the text. `hard`
      is the fraction of hard problems.

    The options `questions` and `shortest` are for training. With `questions` above 1, a question names up to `questions` keys,
    and the answer is the pairs with these keys. With `shortest`, the length of a prompt is drawn between `shortest` and
    `length`, uniformly in the logarithm.

    Raises ConfigError for an unknown or repeated name, and if `length` leaves no room for a problem.
    """

    name = "long"

    def __init__(
        self,
        names: Sequence[str] = (*OWN, "count"),
        length: int = 1024,
        shortest: int = 0,
        pairs: int = 8,
        questions: int = 1,
        hard: float = 0.0,
    ) -> None:
        self.names = check_names(names, (*OWN, *NAMES), "long.names")
        if not 1 <= questions <= pairs <= len(CHARACTERS):
            raise ConfigError(
                f"a question cannot name {questions} of {pairs} keys",
                where="long.questions",
                remedy=f"Set questions to 1 or more. Set pairs to a number from questions to {len(CHARACTERS)}.",
            )
        self.length, self.shortest = length, shortest or length
        self.pairs, self.questions = pairs, questions
        self.families = {name: Families([name], hard) for name in self.names if name not in OWN}
        least = max(_min_prompt_length(name, pairs, questions) for name in self.names)
        if not least <= self.shortest <= length:
            raise ConfigError(
                f"shortest={self.shortest} and length={length} do not satisfy {least} <= shortest <= length",
                where="long.length",
                remedy=f"Set length to {least} or more. Set shortest to 0, or to a number from {least} to length.",
            )

    @property
    def versions(self) -> dict[str, int]:
        own = {name: VERSION for name in self.names if name in OWN}
        return own | {name: version for task in self.families.values() for name, version in task.versions.items()}

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"long {seed} {split}")
        families = {name: task.problems(split, seed) for name, task in self.families.items()}
        order = list(self.names)
        while True:
            rng.shuffle(order)
            for name in order:
                length = round(self.shortest * (self.length / self.shortest) ** rng.random())
                if name in families:
                    yield _put_after_random_text(next(families[name]), rng, length)
                    continue
                problem = self._needle(rng, length) if name == "needle" else _copy(rng, length)
                while split_of(problem.key) != split:
                    problem = self._needle(rng, length) if name == "needle" else _copy(rng, length)
                yield problem

    def grade(self, problem: Problem, reply: str) -> Verdict:
        """Grade a family's problem by the family's own rule. Answers to `needle` and `copy` must match exactly."""
        if problem.family not in OWN:
            return self.families[problem.family].grade(problem, reply)
        return Verdict.RIGHT if reply.strip() == problem.answer else Verdict.WRONG

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        if problem.family in OWN:
            return reply.strip() or None
        return self.families[problem.family].canonical_answer(problem, reply)

    def _needle(self, rng: random.Random, length: int) -> Problem:
        keys, values = rng.sample(CHARACTERS, self.pairs), rng.choices(CHARACTERS, k=self.pairs)
        pairs = [f"({key}{value})" for key, value in zip(keys, values, strict=True)]
        asked = rng.sample(range(self.pairs), rng.randint(1, self.questions))
        question = "\nneedle " + "".join(keys[number] for number in asked)
        text = rng.choices(CHARACTERS, k=length - len(question))
        for number, pair in enumerate(pairs):
            first, end = (len(text) * place // self.pairs for place in (number, number + 1))
            start = rng.randint(first, end - len(pair))
            text[start : start + len(pair)] = pair
        prompt = "".join(text) + question
        return Problem(
            key=prompt,
            prompt=prompt,
            answer="".join(pairs[number] for number in asked),
            family="needle",
            meta={"depth": asked[-1] / self.pairs},
            version=VERSION,
        )


def _copy(rng: random.Random, length: int) -> Problem:
    number, question = "".join(rng.choices(string.digits, k=DIGITS)), "\ncopy"
    text = "".join(rng.choices(string.ascii_letters, k=length - DIGITS - len("[]") - len(question)))
    start = rng.randint(0, len(text))
    prompt = f"{text[:start]}[{number}]{text[start:]}{question}"
    return Problem(key=prompt, prompt=prompt, answer=number, family="copy", version=VERSION)


def _put_after_random_text(problem: Problem, rng: random.Random, length: int) -> Problem:
    """Put a text before the prompt of a family's problem. `Problem.key` does not change, so the problem stays in its split."""
    text = "".join(rng.choices(CHARACTERS, k=max(0, length - len(problem.prompt) - 1)))
    return replace(problem, prompt=f"{text}\n{problem.prompt}")


def _min_prompt_length(name: str, pairs: int, questions: int) -> int:
    """Return the smallest allowed length of a prompt, in characters. Most problems of a family are shorter than this length, so
    that a text fits before the problem."""
    needle = len("(kv)") * pairs + len("\nneedle ") + questions
    return {"needle": needle, "copy": DIGITS + len("[]\ncopy")}.get(name, 24)
