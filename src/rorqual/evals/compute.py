"""How much computation each token takes in a model whose router chooses a different number of experts for each token.

The computation of a token is measured as the number of experts with weights that the token uses in a layer, averaged over the
layers with a router. Identity experts and `SKIP` do not count (LongCat-Flash, 2509.01322, section 2.1).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.core.records import Thinking
from rorqual.core.student_t import t_quantile
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.evals.evaluating import with_problem_seed
from rorqual.evals.evaluation import ALL
from rorqual.evals.stats import Interval
from rorqual.model import ModelConfig
from rorqual.report.table import Table
from rorqual.tasks.find import safe_grade
from rorqual.tasks.task import Problem, Task, Verdict

Part = Literal["prompt", "thinking", "answer"]
TITLES = {
    "part": "part of the text",
    "family": "replies by family",
    "level": "replies by difficulty",
    "verdict": "replies by verdict",
    "position": "replies by position",
}
"""Titles of the tables, by kind of token group."""
LEAST = 10
"""The tables list a token of the vocabulary only if the token occurs at least `LEAST` times."""
LISTED = 12
"""Number of rows in the table of the tokens with the most experts, and in the table of the tokens with the fewest experts."""


@dataclass(frozen=True)
class CountedReply:
    """A problem and its reply, token by token. The last token of a reply is left out, because the model never processes it.
    `experts` [tokens] holds the mean number of experts per layer for each token. `parts` [tokens] says whether a token belongs to the
    prompt, the thinking or the answer.
    """

    problem: Problem
    verdict: Verdict
    tokens: tuple[int, ...]
    parts: tuple[Part, ...]
    experts: tuple[float, ...]


@dataclass(frozen=True)
class TokenGroup:
    """The mean number of `experts` per token and layer in a group of tokens.

    `interval` is the 95 % interval of this mean over problems (`ratio_interval`), or None if the group occurs in a single
    problem.
    """

    kind: str
    name: str
    tokens: int
    problems: int
    experts: float
    interval: Interval | None


@dataclass(frozen=True)
class ComputeReport:
    """The result of `rorqual compute`. `chosen` is the number of experts that the router chooses per token and layer, identity
    experts included."""

    model: str
    task: str
    layers: int
    chosen: int
    groups: tuple[TokenGroup, ...]
    replies: tuple[CountedReply, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all values of the report as JSON, without the texts of the replies."""
        return {
            "model": self.model,
            "task": self.task,
            "layers": self.layers,
            "chosen": self.chosen,
            "groups": [asdict(group) for group in self.groups],
        }


def experts_used(chosen: Tensor, config: ModelConfig) -> Tensor:
    """Return the number of experts with weights that each token uses, averaged over layers [tokens], from the choices [tokens, layers, k]."""
    counts = torch.tensor([ffn.n_experts() for ffn in config.ffns if ffn.experts_per_token()])
    used = (chosen >= 0) & (chosen < counts[:, None])
    return used.sum(-1).float().mean(-1)


def measure_compute(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    *,
    model: str = "",
    thinking: Thinking = "auto",
    params: SamplingParams | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ComputeReport:
    """Answer `problems` and count the experts of each token. The engine must record which experts each token uses.

    Raises ConfigError if the model has no router, or if all tokens use the same number of experts.
    """
    config, params = engine.model.config, params or SamplingParams(max_tokens=1024)
    routed = [ffn for ffn in config.ffns if ffn.experts_per_token()]
    remedy = "Use a model whose router may choose identity experts (kind zero) or no expert."
    if not routed:
        raise ConfigError(
            "this model has no router, so all tokens take the same computation", where=model, remedy=remedy
        )
    requests = [Request(problem.messages, with_problem_seed(params, problem.key), thinking) for problem in problems]
    replies: tuple[CountedReply, ...] = ()
    fixed = all(ffn.active_experts() > ffn.experts_per_token() - 1e-6 for ffn in routed)
    # A router that should always use all of its choices is refused after one answer.
    for asked in (requests[:1], requests) if fixed else (requests,):
        answers = engine.generate(asked, progress=progress)
        replies = tuple(
            _count_reply(engine, task, problem, group[0], config)
            for problem, group in zip(problems, answers, strict=False)
        )
        values = {value for reply in replies for value in reply.experts}
        if len(values) == 1:
            raise ConfigError(f"all tokens use {values.pop():g} experts per layer", where=model, remedy=remedy)
    chosen = routed[0].experts_per_token()
    return ComputeReport(model, task.name, len(routed), chosen, tuple(_groups(replies, engine)), replies)


def _count_reply(
    engine: Engine, task: Task, problem: Problem, completion: Completion, config: ModelConfig
) -> CountedReply:
    assert completion.experts is not None
    tokens = (*completion.prompt_ids, *completion.token_ids)[:-1]
    used = experts_used(completion.experts, config)
    assert len(used) == len(tokens)
    start, reply = len(completion.prompt_ids), completion.token_ids
    ids = engine.chat.think_tag_ids
    thinking = 0 if completion.reasoning is None else len(reply)
    if thinking and ids is not None and ids[1] in reply:
        thinking = reply.index(ids[1]) + 1
    lengths: tuple[tuple[Part, int], ...] = (
        ("prompt", start),
        ("thinking", thinking),
        ("answer", len(reply) - thinking),
    )
    parts = tuple(part for part, length in lengths for _ in range(length))
    verdict = safe_grade(task, problem, completion.text)
    return CountedReply(problem, verdict, tokens, parts[:-1], tuple(used.tolist()))


def _groups(replies: Sequence[CountedReply], engine: Engine) -> Iterator[TokenGroup]:
    """Yield the token groups of all kinds. Groups by family, level, verdict or position contain only
    reply tokens. Groups by part or token also contain prompt tokens."""
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, reply in enumerate(replies):
        start = reply.parts.count("prompt")
        written = len(reply.tokens) - start
        for place, (token, part, used) in enumerate(zip(reply.tokens, reply.parts, reply.experts, strict=True)):
            names: list[tuple[str, str]] = [
                ("part", ALL),
                ("part", part),
                ("token", engine.tokenizer.decode([token], specials=True)),
            ]
            if part != "prompt":
                names += [
                    ("family", reply.problem.family),
                    ("level", f"{reply.problem.family}, {reply.problem.level}"),
                    ("verdict", reply.verdict.value),
                    ("position", f"quarter {1 + 4 * (place - start) // written}"),
                ]
            for group in names:
                found[group][number].append(used)
    parts = (ALL, *get_args(Part))
    order = (*TITLES, "token")

    def sort_key(group: tuple[str, str]) -> tuple[int, int, str]:
        kind, name = group
        return order.index(kind), parts.index(name) if kind == "part" else 0, name

    for kind, name in sorted(found, key=sort_key):
        by_problem = found[kind, name]
        values = [value for listed in by_problem.values() for value in listed]
        if kind != "token" or len(values) >= LEAST:
            interval = ratio_interval(list(by_problem.values())) if len(by_problem) > 1 else None
            yield TokenGroup(kind, name, len(values), len(by_problem), float(np.mean(values)), interval)


def ratio_interval(problems: Sequence[Sequence[float]], confidence: float = 0.95) -> Interval:
    """Return Student's interval of the mean over all tokens, with problems as the independent units.

    The mean is the ratio estimator for clusters of unequal size (Cochran, Sampling Techniques, 1977, section 6.3).
    """
    sizes = np.array([len(values) for values in problems])
    sums = np.array([sum(values) for values in problems])
    mean, count = sums.sum() / sizes.sum(), len(problems)
    error = math.sqrt(count / (count - 1) * float(((sums - mean * sizes) ** 2).sum())) / sizes.sum()
    half = t_quantile(0.5 + confidence / 2, count - 1) * error
    return Interval(float(mean - half), float(mean + half), confidence)


def compute_table(report: ComputeReport) -> str:
    """Return the token groups of `report` as text tables."""
    title = f"{report.model}: experts with weights per token and layer, of {report.chosen} choices in {report.layers} layers"
    return "\n".join([f"{title} ({report.task})", *(table.text() for table in tables(report))])


def tables(report: ComputeReport) -> Iterator[Table]:
    """Yield one table for each kind of group that occurs. Groups by token have two tables: the tokens with the most experts,
    and the tokens with the fewest experts."""
    for kind, title in TITLES.items():
        if groups := [group for group in report.groups if group.kind == kind]:
            yield _table(title, groups)
    tokens = [replace(group, name=repr(group.name)) for group in report.groups if group.kind == "token"]
    tokens.sort(key=lambda group: group.experts)
    if tokens:
        yield _table("tokens with the most experts", tokens[::-1][:LISTED])
        yield _table("tokens with the fewest experts", tokens[:LISTED])


def _table(title: str, groups: Sequence[TokenGroup]) -> Table:
    rows = [
        (group.name, f"{group.tokens:,}", f"{group.experts:.3f}", _interval_text(group.interval)) for group in groups
    ]
    return Table(title=title.capitalize(), heads=("", "tokens", "experts", "95 % interval over problems"), rows=rows)


def _interval_text(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"
