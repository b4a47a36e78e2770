"""Generation of answers to the rows of a prompt file, with continuous batching. The answer to a row does not depend on other
rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from rorqual.core.errors import DataError, RorqualError
from rorqual.engine.engine import Engine
from rorqual.engine.grammar.trial_process import MISMATCH
from rorqual.engine.remote.engine import REFUSED, RemoteEngine, RemoteError
from rorqual.engine.request import Completion
from rorqual.generate.prompts import RefusedRow
from rorqual.generate.schema import KEYS, RowRequest

LEADING = re.compile(r"\w+")
BURST = 256
"""Maximum number of rejected rows that are collected before the rejected rows are yielded."""
AnsweredRow = tuple[RowRequest | RefusedRow, list[Completion]]
"""A row of the prompt file, and the samples that answer the row. A rejected row has no samples."""


REMEDIES = (
    (MISMATCH, "grammar", "Use another seed, or simplify the schema."),
    (
        "the server",
        "",
        "Check the server. Then repeat the command with a new out=, because this file keeps its answers.",
    ),
    ("NaN or infinite logit", "", "The weights are damaged, or the dtype overflows: try dtype=float32."),
    ("", "grammar", "Simplify the grammar, or change it so that every prefix of a reply can be completed."),
)
"""Remedies for failed samples: (part of the sample's error message, invalid key, remedy). The first entry whose part occurs
in the error message applies."""


def refuse_row(row: RowRequest, error: RorqualError) -> RefusedRow:
    """Return a rejected row for an error that the engine raised for its request.

    The invalid key is the last part of `error.where` or the first word of the error message, whichever is a sampling key. If
    neither is a sampling key, the invalid key is the key of the prompt, such as `messages`.
    """
    first_word = LEADING.match(error.what)
    candidates = (error.where.rpartition(", ")[2], first_word.group() if first_word else "")
    key = next((word for word in candidates if word in KEYS), row.key)
    return RefusedRow(row.line, key, error.what, error.remedy, row.carried)


def generate_answers(
    engine: Engine, rows: Iterable[RowRequest | RefusedRow], *, room: int
) -> Iterator[list[AnsweredRow]]:
    """Answer all rows with a local engine. Yield the answered rows in small lists, in the order in which the rows are
    finished.

    New rows are submitted while fewer than `room` samples are running. A row that the engine rejects is yielded as
    `RefusedRow`. If the engine raises an error other than a rejection, the running requests are cancelled and the error is
    raised.
    """
    pending, running = iter(rows), dict[int, tuple[RowRequest, dict[int, Completion]]]()
    samples, more = 0, True
    try:
        while more or running:
            ready: list[AnsweredRow] = []
            while more and samples < room and len(ready) < BURST:
                row = next(pending, None)
                if row is None:
                    more = False
                elif isinstance(row, RefusedRow):
                    ready.append((row, []))
                else:
                    try:
                        running[engine.submit(row.request)] = row, {}
                        samples += row.request.params.n
                    except RorqualError as error:
                        ready.append((refuse_row(row, error), []))
            for delta in engine.step() if running else ():
                if delta.completion is None or delta.request_id not in running:
                    continue
                row, done = running[delta.request_id]
                done[delta.sample] = delta.completion
                samples -= 1
                if len(done) == row.request.params.n:
                    del running[delta.request_id]
                    ready.append((row, [done[sample] for sample in sorted(done)]))
            if ready:
                yield ready
    finally:
        for request_id in running:
            engine.cancel(request_id)


def remote_answers(
    engine: RemoteEngine, rows: Iterable[RowRequest | RefusedRow], *, concurrency: int
) -> Iterator[list[AnsweredRow]]:
    """Answer all rows with a remote endpoint, `concurrency` rows at a time. Yield the answered rows in the same form as
    `generate_answers`.

    If the server rejects a row with a status in `REFUSED`, the row is yielded as `RefusedRow`. An error other than a
    rejection is raised after the running requests have finished.
    """
    pending, running = iter(rows), dict[Future[list[list[Completion]]], RowRequest]()
    more, fatal = True, list[RorqualError]()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="generate") as pool:
        while more or running:
            ready: list[AnsweredRow] = []
            while more and len(running) < concurrency and len(ready) < BURST:
                row = next(pending, None)
                if row is None:
                    more = False
                elif isinstance(row, RefusedRow):
                    ready.append((row, []))
                elif (fault := _remote_refusal(row)) is not None:
                    ready.append((refuse_row(row, fault), []))
                else:
                    running[pool.submit(engine.generate, [row.request])] = row
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                row = running.pop(future)
                try:
                    ready.append((row, future.result()[0]))
                except DataError as error:  # the client rejected the request before sending it
                    ready.append((refuse_row(row, error), []))
                except RemoteError as error:
                    if error.status in REFUSED:
                        ready.append((refuse_row(row, error), []))
                    else:
                        more, fatal = False, [*fatal, error]
            if ready:
                yield ready
    if fatal:
        raise fatal[0]


def _remote_refusal(row: RowRequest) -> DataError | None:
    """Return an error if no remote endpoint can answer the row, else None."""
    if not row.request.messages:
        return DataError("a remote endpoint accepts text, but no token ids", remedy="Give `prompt` or `messages`.")
    if row.request.params.top_logprobs:
        return DataError(
            "a remote endpoint returns text only, no log-probabilities",
            where="top_logprobs",
            remedy="Remove this key, or set run= to a run directory.",
        )
    return None


# ---- output lines


def output_record(
    row: RowRequest | RefusedRow, samples: Sequence[Completion], *, token_ids: bool = False, logprobs: bool = False
) -> dict[str, Any]:
    """Return the output line of a row.

    The output line is reproducible, because values that depend on the time or on other rows, such as cache hits, are left
    out.
    """
    head = {"line": row.line, **row.carried}
    if isinstance(row, RefusedRow):
        return {**head, "error": {"key": row.key, "what": row.what, "remedy": row.remedy}}
    counts = [_n_tokens(sample) for sample in samples]
    choices = [
        _choice_json(number, sample, count, token_ids, logprobs)
        for number, (sample, count) in enumerate(zip(samples, counts))
    ]
    usage = {"prompt_tokens": samples[0].usage.get("prompt_tokens", 0), "completion_tokens": sum(counts)}
    line = {**head, "seed": row.request.params.seed, "choices": choices, "usage": usage}
    if samples[0].prompt_logprobs is not None:
        line["prompt_logprobs"] = _json_numbers(samples[0].prompt_logprobs)
    if samples[0].prompt_top_logprobs is not None:
        line["prompt_top_logprobs"] = _json_pairs(samples[0].prompt_top_logprobs)
    if (fault := first_sample_error(row, samples)) is not None:
        line["error"] = {"key": fault.key, "what": fault.what, "remedy": fault.remedy}
    return line


def first_sample_error(row: RowRequest, samples: Sequence[Completion]) -> RefusedRow | None:
    """Return the error of the first incomplete sample of a row, or None if all samples are complete."""
    errors = [(number, sample.error) for number, sample in enumerate(samples) if sample.error]
    if not errors:
        return None
    number, what = errors[0]
    key, remedy = next(rest for part, *rest in REMEDIES if part in what)
    return RefusedRow(row.line, key, f"sample {number} is incomplete: {what}", remedy, row.carried)


def _n_tokens(sample: Completion) -> int:
    return sample.usage.get("completion_tokens", len(sample.token_ids))


def _choice_json(number: int, sample: Completion, count: int, token_ids: bool, logprobs: bool) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": number,
        "text": sample.text,
        "reasoning": sample.reasoning,
        "finish_reason": sample.finish_reason,
        "tokens": count,
    }
    if sample.error:
        choice["error"] = sample.error
    if token_ids:
        choice["token_ids"] = sample.token_ids
    if logprobs:
        choice["logprobs"] = _json_numbers(sample.logprobs)
    if sample.top_logprobs is not None:
        choice["top_logprobs"] = _json_pairs(sample.top_logprobs)
    return choice


def _json_numbers(values: Sequence[float | None]) -> list[float | None]:
    """Return `values` with None in place of NaN and infinity, which JSON cannot represent."""
    return [None if value is None or not math.isfinite(value) else value for value in values]


def _json_pairs(positions: Sequence[Sequence[tuple[int, float]]]) -> list[list[list[float | None]]]:
    """Return the (token, log-probability) pairs of each position as JSON lists."""
    return [[[token, *_json_numbers([value])] for token, value in position] for position in positions]
