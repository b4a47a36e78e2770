"""Build each grammar, and validate each finished answer, under limits of CPU time and memory. The engine process builds a grammar
only after the trial process has built it, and never validates an answer.

`python trial_process.py` reads messages from standard input. A message is a line with a number of bytes, followed by a JSON
value with this number of bytes. The first message is the tokenizer, and each later message is a list of grammars or finished answers.
For each list, the trial process forks and writes one line with the first error. A message of 0 bytes kills the running fork.
`trial_process.py` imports no other module of Rorqual, so the trial process starts in about 0.1 s.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from io import FileIO
from typing import Any

SECONDS = 1
"""Maximum CPU time of one trial, in seconds."""
MEMORY = 48 << 20
"""Maximum memory of one trial in bytes, in addition to the memory of the tokenizer."""
STACK = 4 << 20
"""Stack size of a trial in bytes. Threads of the engine process have at least the stack size of a trial."""
BACKTRACKS = 100_000
"""Maximum number of backtracking steps of a regular expression when a finished answer is validated."""
LIMITS: Mapping[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 5_000,
    "max_items_in_row": 1_000,
    "max_lexer_states": 40_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""Resource limits for llguidance. `LIMITS` allows about 20 ms to build a lexer, 20 ms per mask, and 60 MB of states. `MASK_SECONDS` of
`grammar.constraint` limits the average time of a mask."""
REHEARSED = 4
"""Number of tokens that a trial generates as a test, because some grammars fail only at their first use."""
NOTHING = "no token can follow"
MISMATCH = "the answer does not match the JSON schema"
"""Beginning of the error message for a finished answer that violates its schema."""


class UnusableGrammar(ValueError):
    """Raised if llguidance or jsonschema-rs rejects a grammar. The exception has the library's own message."""


class InvalidAnswer(ValueError):
    """Raised if a finished answer violates its JSON schema."""


def build_vocabulary(tokenizer: str, size: int, stop_ids: Sequence[int]) -> Any:
    """Return a tokenizer, given as the text of its tokenizer.json, in llguidance's format.

    All added tokens are marked as special. Otherwise, an added token that is not special, such as Qwen3's `<think>`, could
    match plain text in the grammar.
    """
    import llguidance

    data = json.loads(tokenizer)
    data["added_tokens"] = [token | {"special": True} for token in data["added_tokens"]]
    data |= {"truncation": None, "padding": None}
    return llguidance.LLTokenizer(json.dumps(data), n_vocab=size, eos_token=list(stop_ids))


def build_matcher(vocabulary: Any, text: str) -> Any:
    """Compile a grammar in llguidance's format, and test the first `REHEARSED` tokens. Raises UnusableGrammar if llguidance
    rejects the grammar."""
    import llguidance

    limits = llguidance.LLParserLimits(**LIMITS)
    matcher = llguidance.LLMatcher(vocabulary, text, log_level=0, limits=limits)
    trial = matcher.deep_copy()
    for _ in range(REHEARSED):
        allowed = int.from_bytes(trial.compute_bitmask(), "little")
        if trial.is_error() or not allowed:
            raise UnusableGrammar(trial.get_error() or NOTHING)
        if not trial.consume_token((allowed & -allowed).bit_length() - 1) or trial.is_stopped():
            break
    return matcher


def build_validator(schema: dict[str, Any]) -> Any:
    """Return jsonschema-rs's validator of a schema. Remote schema references are not downloaded. Raises UnusableGrammar if
    jsonschema-rs rejects the schema."""
    import jsonschema_rs

    options = jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS)
    try:
        return jsonschema_rs.validator_for(schema, offline=True, validate_formats=True, pattern_options=options)
    except ValueError as error:
        place = "/".join(["#", *map(str, getattr(error, "instance_path", ()))])
        raise UnusableGrammar(f"at {place}: {str(error).splitlines()[0]}") from None


def check_answer(validator: Any, text: str) -> None:
    """Raise InvalidAnswer if the JSON text of an answer violates the schema of `validator`. The error names the violated keyword and
    the keyword's place in the JSON schema."""
    try:
        error = next(iter(validator.iter_errors(json.loads(text))), None)
    except (ValueError, RecursionError) as failed:
        raise InvalidAnswer(f"{MISMATCH}: it cannot be checked ({str(failed)[:60]})") from None
    if error is not None:
        *path, keyword = [str(step) for step in error.schema_path] or ["false"]
        instance = json.dumps(error.instance, ensure_ascii=False)[:60]
        raise InvalidAnswer(f"{MISMATCH}: {keyword!r} at {'/'.join(['#', *path])[:200]} does not hold for {instance}")


def find_first_error(vocabulary: Any, parts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Build the matcher and the schema validator of each grammar in `parts`, and validate each finished answer in `parts`. Return the
    name and the error of the first part that fails, or {} if no part fails."""
    for part in parts:
        try:
            validator = None if part["schema"] is None else build_validator(part["schema"])
            if "answer" in part:
                check_answer(validator, part["answer"])
            else:
                build_matcher(vocabulary, part["text"])
        except (UnusableGrammar, InvalidAnswer) as error:
            return {"name": part["name"], "error": str(error)[:2000]}
    return {}


def _limit_resources() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a library that runs out of memory writes a stack trace
    with open("/proc/self/statm", encoding="ascii") as pages:
        used = int(pages.read().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_AS, used + MEMORY),
        (resource.RLIMIT_STACK, STACK),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _run_trial(vocabulary: Any, parts: Sequence[Mapping[str, Any]], source: FileIO) -> bytes:
    """Run `find_first_error` in a fork, and return its result as JSON, or b"" if the fork was killed."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            _limit_resources()
            os.write(write, json.dumps(find_first_error(vocabulary, parts)).encode())
        finally:
            os._exit(0)  # never return into the loop of `main`
    os.close(write)
    ready, _, _ = select.select([read, source.fileno()], [], [])
    if read not in ready:
        source.readline()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(read, "rb") as result:
        return result.read()


def _read_message(source: FileIO) -> Any:
    """Return the next message from `source`, or None at the end of `source`. An empty message that arrives too late to kill a
    fork is skipped."""
    while head := source.readline():
        data, length = bytearray(), int(head)
        while len(data) < length:
            data += source.read(length - len(data)) or b""
        if data:
            return json.loads(data)
    return None


def main() -> None:
    """Run trials until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source = FileIO(0)  # without a buffer, so that `select` sees every message
    vocabulary = build_vocabulary(**_read_message(source))
    import jsonschema_rs  # noqa: F401  # so that no fork has to import it

    while (parts := _read_message(source)) is not None:
        sys.stdout.buffer.write(_run_trial(vocabulary, parts, source) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
