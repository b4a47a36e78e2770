"""What is kept of each sample the moment it is there: a line of `samples.jsonl`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rorqual.core.errors import DataError
from rorqual.core.records import Message
from rorqual.data.distilled import Distilled, VerdictName
from rorqual.distil.config import FactoryConfig
from rorqual.engine.request import Completion, SamplingParams
from rorqual.tasks.base import Problem

Place = tuple[str, int]
"""A problem's key, and which of its samples."""


@dataclass(frozen=True)
class Entry:
    """One sample. `of` says of which teacher, settings and seed; `attempt` which request brought it ("": none was needed).

    `core_seconds` is its share, by tokens, of what its batch took. `error`: why it is no answer, as in `Completion`. `failed`: none came, and a
    further call asks again. `model`: the name under which another model than the one that was asked for answered.
    """

    of: str
    key: str
    number: int
    seed: int
    text: str
    reasoning: str | None
    finish: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    prompt_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    core_seconds: float = 0.0
    money: float = 0.0
    attempt: str = ""
    error: str = ""
    failed: bool = False
    model: str = ""

    @property
    def place(self) -> Place:
        """Which sample of which problem it is."""
        return self.key, self.number

    def line(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def entry_of(
    of: str, problem: Problem, number: int, params: SamplingParams, completion: Completion, **cost: Any
) -> Entry:
    """A completion as it is kept. Half a surrogate pair, which a server may send, is no text and becomes a question mark."""
    usage = completion.usage
    return Entry(
        of=of,
        key=problem.key,
        number=number,
        seed=params.seed,
        text=_text(completion.text),
        reasoning=None if completion.reasoning is None else _text(completion.reasoning),
        finish=completion.finish_reason,
        prompt_tokens=usage.get("prompt_tokens", len(completion.prompt_ids)),
        completion_tokens=usage.get("completion_tokens", len(completion.token_ids)),
        prompt_ids=tuple(completion.prompt_ids),
        token_ids=tuple(completion.token_ids),
        error=_text(completion.error),
        **cost,
    )


def failure_of(of: str, problem: Problem, number: int, params: SamplingParams, error: str) -> Entry:
    """A sample that never came."""
    return Entry(of, problem.key, number, params.seed, "", None, "stop", 0, 0, error=_text(error), failed=True)


DATED = re.compile(r"[-@:](\d{3,4}|\d{6}|\d{8}|\d{4}-\d{2}(-\d{2})?)")
"""What a server adds to a model's name to say which version it is."""


def is_same_model(asked: str, answered: str) -> bool:
    """Whether a server's name for the model that answered may be the one that was asked for: `gpt-4o` and `gpt-4o-2024-08-06` are, `gpt-4o` and
    `gpt-4o-mini` are not. Case, an organisation before the name, and `-latest` make no other model; no name says nothing."""
    one, other = (name.casefold().rpartition("/")[2].removesuffix("-latest") for name in (asked, answered))
    return not other or other == one or (other.startswith(one) and bool(DATED.fullmatch(other[len(one) :])))


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def read_entry(line: Mapping[str, Any], where: str) -> Entry:
    """A line of the journal; one that is not a sample is a `DataError`."""
    try:
        return Entry(
            **{**line, "prompt_ids": tuple(line["prompt_ids"]), "token_ids": tuple(line["token_ids"])},
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"a line that is no sample ({error})", where=where, remedy="Delete it, or begin in another folder."
        ) from None


def sampling(config: FactoryConfig) -> dict[str, Any]:
    """The settings that a sample depends on, beside its teacher, its problem and its number."""
    names = ("temperature", "top_p", "max_tokens", "thinking", "seed", "samples", "model")
    found = {name: getattr(config, name) for name in names}
    # Said of addresses alone, and where there are more than there were when nothing was said of them.
    longer = config.remote and config.seed_bits != 31
    return found | {"seed_bits": config.seed_bits} if longer else found


def identity(config: FactoryConfig, teacher: str) -> str:
    """A short name for (teacher, settings, seed): samples of another one are never mixed in."""
    text = json.dumps({"teacher": teacher} | sampling(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def row_of(
    entry: Entry, problem: Problem, verdict: VerdictName, config: FactoryConfig, teacher: str, chosen: int = 0
) -> Distilled:
    """The sample as a row of the result, not filtered yet.

    `chosen`: how many ids at the prompt's end made the teacher think, or answer at once. They open the reply in the row: a student that
    never saw `<think>` chosen would not choose it.
    """
    asked = len(entry.prompt_ids) - chosen if entry.prompt_ids else 0
    return Distilled(
        key=problem.key,
        family=problem.family,
        level=problem.level,
        prompt=problem.prompt,
        messages=(*problem.messages, Message("assistant", entry.text, entry.reasoning)),
        verdict=verdict,
        teacher=teacher,
        params=json.dumps(sampling(config), sort_keys=True),
        seed=entry.seed,
        number=entry.number,
        prompt_ids=entry.prompt_ids[:asked],
        token_ids=(*entry.prompt_ids[asked:], *entry.token_ids),
        prompt_tokens=entry.prompt_tokens,
        completion_tokens=entry.completion_tokens,
        core_seconds=entry.core_seconds,
        money=entry.money,
    )
