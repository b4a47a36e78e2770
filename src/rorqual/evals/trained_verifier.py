"""A trained verifier: a model that answers "yes" or "no" to the question whether a reply is right (generative verifiers, Zhang et al.
2024, 2408.15240, section 3.1).

A verifier is a run that was fine-tuned on graded replies to training problems. The verifier receives replies as text, so it may have
another tokenizer than the model that wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rorqual.core.errors import ConfigError
from rorqual.core.journal import json_line
from rorqual.core.records import Message, write_atomic
from rorqual.engine.engine import Engine
from rorqual.engine.score import Logprobs, first_token_logprobs
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.tasks.task import Problem, Verdict

ANSWERS = ("yes", "no")
KNOWN = 0.5
"""Smallest mean of P(yes) + P(no) over replies for a verifier. A run with a smaller mean was not trained as a verifier, and is
rejected."""


def verifier_prompt(sample: GradedSample) -> str:
    """Return the verifier's prompt: the problem, the reply with its reasoning, and the question whether the reply is right."""
    parts = (sample.prompt, sample.reasoning or "", sample.reply, "Right?")
    return "\n".join(part.strip() for part in parts if part.strip())


def write_training_rows(evaluation: Evaluation, file: Path) -> int:
    """Write one conversation for each graded sample as a JSON line, for `rorqual train sft data=`. Return the number of conversations."""
    lines = []
    for sample in evaluation.samples:
        if sample.verdict is not Verdict.UNGRADED:
            answer = ANSWERS[0] if sample.verdict is Verdict.RIGHT else ANSWERS[1]
            talk = [{"role": "user", "content": verifier_prompt(sample)}, {"role": "assistant", "content": answer}]
            lines.append(json_line({"messages": talk}))
    write_atomic(file, lines)
    return len(lines)


def with_verifier_scores(evaluation: Evaluation, verifier: Engine, name: str = "") -> Evaluation:
    """Return the evaluation with the verifier's log-odds log P(yes) - log P(no) as each sample's `score`.

    Samples without a reply have no score. Raises ConfigError if "yes" and "no" have the same first token, or if the verifier
    rarely answers "yes" or "no". Raises DataError if a verifier's prompt does not fit into the verifier's context.
    """
    asked = [sample for sample in evaluation.samples if not sample.error]
    logprobs = _answer_logprobs([verifier_prompt(sample) for sample in asked], verifier, name)
    odds = iter(logprobs[:, 0].astype(float) - logprobs[:, 1])
    samples = tuple(
        sample if sample.error else sample.model_copy(update={"score": float(next(odds))})
        for sample in evaluation.samples
    )
    return evaluation.model_copy(update={"samples": samples})


def check_verifier(verifier: Engine, problems: Sequence[Problem], name: str = "") -> None:
    """Score the gold answers of `problems`. Raises ConfigError like `with_verifier_scores`, before any problem is answered."""
    _answer_logprobs([f"{problem.prompt}\n{problem.answer}\nRight?" for problem in problems], verifier, name)


def _answer_logprobs(prompts: Sequence[str], verifier: Engine, name: str) -> Logprobs:
    """Return the log-probabilities of "yes" and "no" after each prompt [prompts, 2]."""
    first = [verifier.tokenizer.encode(answer)[0] for answer in ANSWERS]
    if first[0] == first[1]:
        raise ConfigError(
            "'yes' and 'no' begin with the same token", where=f"verifier={name}", remedy="Use another model."
        )
    ids = [verifier.chat.prompt((Message("user", prompt),), "off") for prompt in prompts]
    logprobs = first_token_logprobs(verifier.scoring_model, ids, first)
    if len(logprobs) and (known := float(np.exp(logprobs).sum(1).mean())) < KNOWN:
        raise ConfigError(
            f"this run answers 'yes' or 'no' with a probability of {known:.0%} only, so it is not a verifier",
            where=f"verifier={name}",
            remedy="Train a verifier on graded replies: eval ... split=train verifier_data=FILE.jsonl, then train sft data=FILE.jsonl.",
        )
    return logprobs
