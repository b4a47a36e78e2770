"""Grade labelled pairs with lm-evaluation-harness and with math-verify alone. `graders.py` calls it and counts the verdicts.

    PYTHON benchmarks/peers_graders/harness.py PAIRS       # in an environment with `pip install "lm_eval[math]"`

The installed harness is used unchanged: the filters, the regular expressions and the metric of `tasks/gsm8k/gsm8k.yaml`, and
`process_results` of `tasks/minerva_math/utils.py` and `tasks/hendrycks_math/utils.py`. An exception counts as ungraded.
The script prints one JSON object.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter
from math_verify import parse, verify

Pair = dict[str, Any]
Grader = Callable[[Pair], str]
"""Maps a pair to "right", "wrong" or "ungraded"."""
HARNESS = Path(lm_eval.__file__).parent


def math_verify_alone(pair: Pair) -> str:
    """Grade with math-verify as its README shows: parse both sides, then verify."""
    return said(verify(parse(f"${pair['gold']}$"), parse(pair["reply"])))


def said(right: object) -> str:
    return "right" if right else "wrong"


def harness_gsm8k(name: str) -> Grader:
    """Return a grader with the filter `name` of the harness's GSM8K task and its exact match."""
    text = (HARNESS / "tasks/gsm8k/gsm8k.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    (metric,) = config["metric_list"]
    ignored = {key: metric[key] for key in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
    (chosen,) = [one["filter"][0] for one in config["filter_list"] if one["name"] == name]
    regex = RegexFilter(**{key: chosen[key] for key in ("regex_pattern", "group_select") if key in chosen})

    def grade(pair: Pair) -> str:
        ((answer,),) = regex.apply([[pair["reply"]]], [{}])
        return said(exact_match_hf_evaluate([answer], [f"#### {pair['gold']}"], **ignored)["exact_match"])

    return grade


def harness_math(task: str, metric: str) -> Grader:
    """Return a grader with `process_results` of a harness task and one of its metrics."""
    spec = importlib.util.spec_from_file_location(task, HARNESS / f"tasks/{task}/utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def grade(pair: Pair) -> str:
        boxed = f"\\boxed{{{pair['gold']}}}"
        normal = getattr(module, "normalize_final_answer", str)(pair["gold"])
        return said(module.process_results({"answer": normal, "solution": boxed}, [pair["reply"]])[metric])

    return grade


def peers() -> dict[str, dict[str, Grader]]:
    """Return the graders by task and name."""
    return {
        "gsm8k": {
            "lm-eval gsm8k, strict-match": harness_gsm8k("strict-match"),
            "lm-eval gsm8k, flexible-extract": harness_gsm8k("flexible-extract"),
            "math-verify": math_verify_alone,
        },
        "math500": {
            "lm-eval minerva_math, exact_match": harness_math("minerva_math", "exact_match"),
            "lm-eval minerva_math, math_verify": harness_math("minerva_math", "math_verify"),
            "lm-eval hendrycks_math, exact_match": harness_math("hendrycks_math", "exact_match"),
            "math-verify": math_verify_alone,
        },
    }


def guarded(grade: Grader, pair: Pair) -> str:
    try:
        return grade(pair)
    except Exception as error:  # the other graders may raise anything
        print(f"{type(error).__name__}: {error}"[:120], f"<- {pair['reply'][:60]!r}", file=sys.stderr)
        return "ungraded"


def main() -> None:
    logging.disable(logging.WARNING)
    pairs = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").split("\n") if line.strip()]
    found: dict[str, dict[str, list[str]]] = {}
    for task, graders in peers().items():
        of_task = [pair for pair in pairs if pair["task"] == task]
        found[task] = {name: [guarded(grade, pair) for pair in of_task] for name, grade in graders.items()}
    versions = {name: importlib.metadata.version(name) for name in ("lm_eval", "math-verify", "antlr4-python3-runtime")}
    print(json.dumps({"verdicts": found, "versions": versions}))


if __name__ == "__main__":
    main()
