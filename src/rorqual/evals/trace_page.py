"""The trace page: the rollouts of a GRPO run, step by step, in one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rorqual.core.errors import DataError
from rorqual.core.records import RunDir
from rorqual.report.page import write_page

TRACE_FILE = "trace.html"
TEXT_STEPS = 200
"""Maximum number of steps whose prompts and replies are on the page. For a longer run, the page has the texts of
`TEXT_STEPS` evenly spaced steps.

Steps without texts show verdicts, advantages and lengths only.
"""
CODES = {"right": "r", "wrong": "w", "ungraded": "u"}


def build_trace(folder: Path, *, text_steps: int = TEXT_STEPS) -> Path:
    """Write `folder/trace.html` from the run's `metrics.jsonl` and `rollouts.jsonl`, and return its path.

    Raises DataError if the folder is not a run, or if the run saved no rollouts (another recipe, or `source.trace=0`).
    """
    run = RunDir(folder)
    config = run.config()
    lines = [line for line in run.rollouts() if isinstance(line, dict) and "samples" in line]
    if not lines:
        raise DataError(
            "the run has no saved rollouts",
            where=str(run.rollouts_file),
            remedy="Train with `rorqual train grpo`; for example, source.trace=4 saves the texts of 4 groups per step.",
        )
    data = {"facts": run_facts(config, folder), "steps": rollouts_by_step(lines, list(run.metrics()), text_steps)}
    return write_page(folder / TRACE_FILE, "trace", name=folder.name, data=data)


def run_facts(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Summarise a run as a list of short phrases. `config` is the content of `run.yaml`."""
    source = config.get("source") or {}
    words = [f"{config.get('recipe', '?')}, seed {config.get('seed', 0)}", f"task {source.get('task', '?')}"]
    if "problems" in source and "samples" in source:
        words.append(f"{source['problems']} problems per step, {source['samples']} samples each")
    if "temperature" in source:
        words.append(f"temperature {source['temperature']:g}, at most {source.get('max_tokens', '?')} tokens")
    return [str(folder), *words]


def rollouts_by_step(
    lines: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]], text_steps: int
) -> list[dict[str, Any]]:
    """Return one dictionary per step, with its metrics and its groups of rollouts in order."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        by_step.setdefault(int(line["step"]), []).append(line)
    metrics = {int(record["step"]): record for record in records if "step" in record}
    spoken = spread_steps(sorted(by_step), text_steps)
    return [
        {
            "step": step,
            "metrics": {k: v for k, v in metrics.get(step, {}).items() if isinstance(v, int | float)},
            "groups": [compact_rollout_group(line, step in spoken) for line in groups],
        }
        for step, groups in sorted(by_step.items())
    ]


def spread_steps(steps: Sequence[int], count: int) -> set[int]:
    """Return at most `count` evenly spaced steps, including the first and the last step."""
    if len(steps) <= count:
        return set(steps)
    last = len(steps) - 1
    return {steps[round(i * last / max(count - 1, 1))] for i in range(count)}


def compact_rollout_group(line: dict[str, Any], spoken: bool) -> dict[str, Any]:
    """Return a group of rollouts as a dictionary with one-letter keys: k (key), f (family), l (level), p (prompt), a (answer),
    s (samples).

    A sample is [verdict, advantage, tokens, thinking tokens, cut off, thinking, reply]. The last two fields, thinking and
    reply, exist only for steps whose texts are on the page.
    """
    short: dict[str, Any] = {"k": line["key"], "f": line["family"], "l": line["level"]}
    texts = spoken and "prompt" in line
    if texts:
        short |= {"p": line["prompt"], "a": line["answer"]}
    short["s"] = [
        [CODES[s["verdict"]], round(s["advantage"], 4), s["tokens"], s["thinking"], int(s["finish"] == "length")]
        + ([s["reasoning"], s["text"]] if texts else [])
        for s in line["samples"]
    ]
    return short
