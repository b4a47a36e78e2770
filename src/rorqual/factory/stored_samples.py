"""Records of samples. Each sample is a line of `samples.jsonl`, written when the sample arrives."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rorqual.core.content_parts import content_json
from rorqual.core.errors import DataError
from rorqual.core.records import Message
from rorqual.data.distilled import TeacherSample, VerdictName
from rorqual.engine.remote.engine import replace_lone_surrogates
from rorqual.engine.request import Completion
from rorqual.factory.config import FactoryConfig
from rorqual.tasks.task import Problem

SampleId = tuple[str, int]
"""(key of the problem, index of the sample): identifies a sample."""


@dataclass(frozen=True)
class StoredSample:
    """A sample of a teacher.

    - `of`: hash of teacher, settings and seed.
    - `core_seconds`: the sample's share of its batch's processor time, in proportion to the sample's number of tokens.
    - `attempt`: ledger name of the paid request that returned the sample.
    - `error`: why the sample has no answer, as in `Completion`.
    - `failed`: whether no completion arrived. A later call retries a failed request.
    - `seed`: the seed that was sent for this sample.
    - `model`: name of the model that answered, or "" if the reply does not name it.
    - `prompt`: hash of the messages that were sent (`prompt_hash`), or "" in files of earlier versions.
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
    prompt: str = ""

    @property
    def sample_id(self) -> SampleId:
        """The key of the problem and the index of the sample, which identify the sample."""
        return self.key, self.number


def prompt_hash(problem: Problem) -> str:
    """Return a short hash of the messages of a problem."""
    messages = [
        (m.role, content_json(m.content), m.reasoning, [*map(asdict, m.tool_calls)], m.tool_call_id)
        for m in problem.messages
    ]
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]


def sample_of_completion(
    of: str, problem: Problem, number: int, seed: int, completion: Completion, **cost: Any
) -> StoredSample:
    """Convert a completion to a stored sample. A negative token count in the server's usage is stored as 0."""
    usage = completion.usage
    return StoredSample(
        of=of,
        key=problem.key,
        number=number,
        seed=seed,
        text=completion.text,
        reasoning=completion.reasoning,
        finish=completion.finish_reason,
        prompt_tokens=max(0, usage.get("prompt_tokens", len(completion.prompt_ids))),
        completion_tokens=max(0, usage.get("completion_tokens", len(completion.token_ids))),
        prompt_ids=tuple(completion.prompt_ids),
        token_ids=tuple(completion.token_ids),
        error=replace_lone_surrogates(completion.error),
        model=completion.model,
        prompt=prompt_hash(problem),
        **cost,
    )


def failed_sample(of: str, problem: Problem, number: int, seed: int, error: str) -> StoredSample:
    """Return the stored sample for a request that failed."""
    return StoredSample(
        of, problem.key, number, seed, "", None, "stop", 0, 0, error=replace_lone_surrogates(error), failed=True
    )


DATED = re.compile(r"[-@:](\d{3,4}|\d{6}|\d{8}|\d{4}-\d{2}(-\d{2})?)")
"""Matches a version suffix that servers append to the name of a model."""


def is_same_model(requested: str, answered: str) -> bool:
    """Return whether the model name in a response may denote the requested model.

    `gpt-4o` matches `gpt-4o-2024-08-06`, but not `gpt-4o-mini`. Case, an organisation prefix and `-latest` are ignored. An
    empty name in the response matches every model.
    """
    requested_name, answered_name = (
        name.casefold().rpartition("/")[2].removesuffix("-latest") for name in (requested, answered)
    )
    return (
        not answered_name
        or answered_name == requested_name
        or (answered_name.startswith(requested_name) and bool(DATED.fullmatch(answered_name[len(requested_name) :])))
    )


def parse_sample(line: Mapping[str, Any], where: str) -> StoredSample:
    """Parse a line of `samples.jsonl` as a sample. Raises DataError if the line is not a sample."""
    try:
        return StoredSample(
            **{**line, "prompt_ids": tuple(line["prompt_ids"]), "token_ids": tuple(line["token_ids"])},
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"this line is not a sample ({error})", where=where, remedy="Delete the line, or use another folder."
        ) from None


def sampling_settings(config: FactoryConfig) -> dict[str, Any]:
    """Return the settings that a sample depends on, in addition to its teacher, problem and index."""
    names = ("temperature", "top_p", "max_tokens", "thinking", "seed", "seed_bits", "samples", "model")
    return {name: getattr(config, name) for name in names}


def settings_hash(config: FactoryConfig, teacher: str) -> str:
    """Return a short hash of teacher, settings and seed. Samples with different hashes are never mixed in a folder."""
    text = json.dumps({"teacher": teacher} | sampling_settings(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def row_of(
    entry: StoredSample, problem: Problem, verdict: VerdictName, config: FactoryConfig, teacher: str, chosen: int = 0
) -> TeacherSample:
    """Convert a stored sample to a row of the dataset, before filtering.

    `chosen`: number of tokens at the prompt's end that forced the teacher to think or not to think. In the row, the `chosen`
    tokens are at the start of the reply, so that a student learns to generate `<think>` itself.
    """
    n_prompt = len(entry.prompt_ids) - chosen if entry.prompt_ids else 0
    return TeacherSample(
        key=problem.key,
        family=problem.family,
        level=problem.level,
        prompt=problem.prompt,
        messages=(*problem.messages, Message("assistant", entry.text, entry.reasoning)),
        verdict=verdict,
        teacher=teacher,
        params=json.dumps(sampling_settings(config), sort_keys=True),
        seed=entry.seed,
        number=entry.number,
        prompt_ids=entry.prompt_ids[:n_prompt],
        token_ids=(*entry.prompt_ids[n_prompt:], *entry.token_ids),
        prompt_tokens=entry.prompt_tokens,
        completion_tokens=entry.completion_tokens,
        core_seconds=entry.core_seconds,
        money=entry.money,
        model=entry.model,
    )
