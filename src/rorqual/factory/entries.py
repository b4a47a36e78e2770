"""Sample records: one line of `samples.jsonl` per sample, written on arrival."""

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
from rorqual.engine.request import Completion, SamplingParams
from rorqual.factory.config import FactoryConfig
from rorqual.tasks.base import Problem

Place = tuple[str, int]
"""A problem's key, and the index of the sample."""


@dataclass(frozen=True)
class Entry:
    """One sample. `of` identifies teacher, settings and seed. `attempt` names the request that returned it, if it was paid.

    `core_seconds` is the sample's share of its batch, by tokens. `error` says why there is no answer, as in
    `Completion`. With `failed`, no completion arrived, and a later call retries. `model` is the model that answered,
    if it is not the requested one.
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
        """The problem's key and the sample's index."""
        return self.key, self.number

    def line(self) -> dict[str, Any]:
        """Return the entry as a JSON object."""
        return asdict(self)


def entry_of(
    of: str, problem: Problem, number: int, params: SamplingParams, completion: Completion, **cost: Any
) -> Entry:
    """Return a completion as an entry. A lone surrogate, which a server may send, becomes a question mark."""
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
    """Return the entry of a sample that failed."""
    return Entry(of, problem.key, number, params.seed, "", None, "stop", 0, 0, error=_text(error), failed=True)


DATED = re.compile(r"[-@:](\d{3,4}|\d{6}|\d{8}|\d{4}-\d{2}(-\d{2})?)")
"""A version suffix that a server appends to a model's name."""


def is_same_model(asked: str, answered: str) -> bool:
    """Return whether the model that answered may be the requested one, judged by its name.

    `gpt-4o` matches `gpt-4o-2024-08-06`, but not `gpt-4o-mini`. Case, an organisation prefix and `-latest` are
    ignored. An empty answer name matches everything.
    """
    one, other = (name.casefold().rpartition("/")[2].removesuffix("-latest") for name in (asked, answered))
    return not other or other == one or (other.startswith(one) and bool(DATED.fullmatch(other[len(one) :])))


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def read_entry(line: Mapping[str, Any], where: str) -> Entry:
    """Parse a line of the journal. Raises DataError if it is not a sample."""
    try:
        return Entry(
            **{**line, "prompt_ids": tuple(line["prompt_ids"]), "token_ids": tuple(line["token_ids"])},
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"this line is not a sample ({error})", where=where, remedy="Delete the line, or use another folder."
        ) from None


def sampling(config: FactoryConfig) -> dict[str, Any]:
    """Return the settings that determine a sample, apart from its teacher, its problem and its index."""
    names = ("temperature", "top_p", "max_tokens", "thinking", "seed", "samples", "model")
    found = {name: getattr(config, name) for name in names}
    # Only for addresses, and only if not 31, the size in older runs: otherwise their identity would change.
    longer = config.remote and config.seed_bits != 31
    return found | {"seed_bits": config.seed_bits} if longer else found


def identity(config: FactoryConfig, teacher: str) -> str:
    """Return a short hash of (teacher, settings, seed); samples with different hashes are never mixed."""
    text = json.dumps({"teacher": teacher} | sampling(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def row_of(
    entry: Entry, problem: Problem, verdict: VerdictName, config: FactoryConfig, teacher: str, chosen: int = 0
) -> Distilled:
    """Return the sample as an unfiltered row of the result.

    `chosen` is the number of ids at the prompt's end that forced the teacher to think, or to answer at once. In the
    row they open the reply. Otherwise a student never learns to emit `<think>` by itself.
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
