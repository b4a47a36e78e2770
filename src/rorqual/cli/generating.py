"""Implementation of `rorqual generate`: generate replies to a file of prompts, with a run or a server.

Replies are saved as they arrive, so an interrupted command can resume.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from rorqual.cli.eval_settings import REMOTE, SeedBits, load_client
from rorqual.cli.evaluating import load_with_fingerprint, software_versions
from rorqual.cli.machine import available_cores
from rorqual.cli.settings import WHERE, EngineSettings, check_device, refuse_ineffective_settings, split_pairs
from rorqual.core.config import Natural, parse_config, parse_scalar
from rorqual.core.errors import ConfigError, DataError, RorqualError, suggest_name
from rorqual.core.progress import clock_text
from rorqual.core.records import NO_DEFAULTS, RunDir, TaskDefaults
from rorqual.data.source.cells import named_columns
from rorqual.engine.engine import Engine
from rorqual.engine.remote.engine import RemoteEngine
from rorqual.generate.batch import (
    AnsweredRow,
    generate_answers,
    output_record,
    refuse_row,
    remote_answers,
)
from rorqual.generate.output import (
    PartialOutput,
    answer_rows,
    check_ending,
    check_writable_path,
)
from rorqual.generate.prompts import PromptFile, RefusedRow, read_prompts
from rorqual.generate.schema import TEXTS, RowParser, RowRequest, RowSampling
from rorqual.ops.backends import backend, backend_cache_id
from rorqual.ops.backends.torch_invariant import NOT_HELD
from rorqual.teach.answer_file import answer_file
from rorqual.teach.paths import has_answerer

TAUGHT = ("run", "out", "prompt", "strict", "quiet", "threads")
"""Settings that have an effect if `run` is a folder that `rorqual teach` wrote."""


class GenerateSettings(EngineSettings):
    """Settings of `rorqual generate` other than sampling parameters."""

    run: str = Field(min_length=1, description="run folder, folder of rorqual teach, or a server's http://... address")
    out: str = Field(min_length=1, description="JSONL file to write; from a folder of rorqual teach, also CSV or TSV")
    prompt: str = Field(
        "", description="columns of the prompt, separated by commas; default: prompt, messages or prompt_ids"
    )
    raw: bool = Field(False, description="continue each prompt as plain text, without the chat format")
    token_ids: bool = Field(False, description="write token ids")
    logprobs: bool = Field(False, description="write log-probabilities")
    strict: bool = Field(False, description="stop at the first invalid row, before anything is generated")
    quiet: bool = Field(False, description="print no progress")
    slots: int = Field(64, ge=1, le=4096, description="maximum sequences in a batch")
    max_len: Natural = Field(0, description="context in tokens; 0: the model's")
    threads: Natural = Field(0, description="threads; 0: all cores")
    model: str = Field("", description="for a server: name of its model")
    concurrency: int = Field(8, ge=1, le=1024, description="for a server: maximum requests at a time")
    seed_bits: SeedBits = Field(64, description="for a server: size of its seeds")


def read_generate_settings(arguments: Sequence[str] | None) -> tuple[GenerateSettings, RowSampling]:
    """Split the command's arguments into settings and sampling parameters. A row of the prompt file may override sampling
    parameters.

    Raises ConfigError if a key is unknown, or if `run` or `out` is missing.
    """
    command_values, sampling = dict[str, str](), dict[str, Any]()
    for key, value in split_pairs(arguments).items():
        if key in RowSampling.model_fields:
            sampling[key] = parse_scalar(value)
            if key in TEXTS and not isinstance(sampling[key], list):
                sampling[key] = value
        elif key in GenerateSettings.model_fields:
            command_values[key] = value
        else:
            known = (*RowSampling.model_fields, *GenerateSettings.model_fields)
            raise ConfigError(f"unknown key '{key}'", where=WHERE, remedy=suggest_name(key, known))
    chosen = parse_config(GenerateSettings, command_values, where=WHERE)
    return chosen, parse_config(RowSampling, sampling, where=WHERE)


def generate_file(file: Path, arguments: Sequence[str] | None) -> tuple[int, list[str]]:
    """Generate replies to all rows of `file` that have no reply in the output yet.

    Return the number of rows with an error, and the lines of the summary that the command prints.
    """
    chosen, sampling = read_generate_settings(arguments)
    out = Path(chosen.out)
    check_writable_path(out)
    if out.exists() and file.exists() and out.samefile(file):
        raise ConfigError("out= is the prompt file itself", where="out", remedy="Choose another out=.")
    if has_answerer(Path(chosen.run)):
        refuse_ineffective_settings(chosen, TAUGHT, chosen.run)
        refuse_ineffective_settings(sampling, (), chosen.run)
        check_ending(out)
        return answer_file(
            file,
            out,
            Path(chosen.run),
            columns=chosen.prompt,
            threads=chosen.threads or available_cores(),
            strict=chosen.strict,
            quiet=chosen.quiet,
            versions=software_versions(),
        )
    prompts = PromptFile.open(file)
    columns = named_columns(chosen.prompt, prompts.columns(), "prompt") if chosen.prompt else ()
    plain = chosen.raw or chosen.run.startswith(REMOTE)
    task = NO_DEFAULTS if plain else RunDir(Path(chosen.run)).task_defaults()
    engine, model_identity = _engine_and_identity(chosen)
    local = engine if isinstance(engine, Engine) else None
    encode = _text_encoder(local) if chosen.raw and local else None
    request_schema = RowParser(sampling, encode, file.suffix.lower() in (".csv", ".tsv"), columns, task)
    if chosen.strict:
        _check_all_rows(local, prompts, request_schema)
    identity = _settings_of_replies(chosen, sampling, prompts) | model_identity | _defaults_that_apply(task, sampling)
    if columns:
        identity["prompt"] = ", ".join(columns)
    with PartialOutput(out, identity, rows=prompts.rows, last=prompts.last) as output:
        start, before, tokens = time.monotonic(), output.count, 0

        def records(rows: Iterator[tuple[int, dict[str, Any] | RefusedRow]]) -> Iterator[dict[int, dict[str, Any]]]:
            nonlocal tokens
            for batch in _answered(engine, itertools.starmap(request_schema.parse_row, rows), chosen):
                lines = {
                    row.line: output_record(row, samples, token_ids=chosen.token_ids, logprobs=chosen.logprobs)
                    for row, samples in batch
                }
                tokens += sum(choice["tokens"] for line in lines.values() for choice in line.get("choices", ()))
                yield lines

        def pace() -> str:
            return f"{tokens / max(time.monotonic() - start, 1e-9):,.1f} tokens/s"

        news = answer_rows(output, prompts, records, quiet=chosen.quiet, pace=pace)
        rows, errors, count = prompts.rows, output.errors, output.count - before
    if count:
        spent = clock_text(time.monotonic() - start)
        news = [f"  this run: {count:,} lines, {tokens:,} tokens in {spent}, {pace()}", *news]
    return errors, [f"{rows:,} lines: {rows - errors:,} answered, {errors:,} refused", *news, f"  {out}"]


def _answered(
    engine: Engine | RemoteEngine, requests: Iterator[RowRequest | RefusedRow], chosen: GenerateSettings
) -> Iterator[list[AnsweredRow]]:
    """Return an iterator over the answered rows."""
    if isinstance(engine, RemoteEngine):
        return remote_answers(engine, requests, concurrency=chosen.concurrency)
    return generate_answers(engine, requests, room=2 * chosen.slots)


# ---- the model


def _engine_and_identity(chosen: GenerateSettings) -> tuple[Engine | RemoteEngine, dict[str, Any]]:
    """Return the engine, and the fields that identify the engine's model.

    An interrupted command resumes only if the fields that identify the model are unchanged.
    """
    if not chosen.run.startswith(REMOTE):
        local, fingerprint_, _ = load_with_fingerprint(RunDir(Path(chosen.run)), lambda: _local_engine(chosen))
        return local, {"run": fingerprint_, **software_versions()}
    # concurrency=1 sends the samples of a row one at a time, because rows already run concurrently.
    engine = load_client(chosen.run, chosen.model, seed_bits=chosen.seed_bits, concurrency=1)
    for key in ("raw", "token_ids", "logprobs"):
        if getattr(chosen, key):
            raise ConfigError(
                f"{key}=true needs a local engine; a server returns only text",
                where=key,
                remedy=f"Remove {key}=, or give a run's folder.",
            )
    return engine, {"run": chosen.run, "seed_bits": chosen.seed_bits}


def _local_engine(chosen: GenerateSettings) -> Engine:
    check_device(chosen.device)
    threads = chosen.threads or available_cores()
    torch.set_num_threads(threads)
    engine = Engine(
        Path(chosen.run),
        device=chosen.device,
        dtype=chosen.dtype,
        slots=chosen.slots,
        max_len=chosen.max_len or None,
        threads=threads,
        record_experts=False,
        backend=chosen.backend,
    )
    if backend(engine.config.backend).invariant and not engine.invariant:
        print(NOT_HELD, file=sys.stderr)
    if engine.chat.name == "none" and not chosen.raw:
        raise ConfigError(
            "this is a base model: its tokenizer has no chat template", where=chosen.run, remedy="Give raw=true."
        )
    return engine


def _text_encoder(engine: Engine) -> Any:
    chat = engine.chat
    return lambda text: [*([] if chat.bos is None else [chat.bos]), *chat.tokenizer.encode(text)]


def _check_all_rows(engine: Engine | None, prompts: PromptFile, request_schema: RowParser) -> None:
    """Raise DataError if a row of the prompt file is invalid or would be refused by the engine."""
    for line, row in read_prompts(prompts.path):
        request = request_schema.parse_row(line, row)
        if isinstance(request, RowRequest) and engine is not None:
            try:
                engine.check(request.request)
            except RorqualError as error:
                request = refuse_row(request, error)
        if isinstance(request, RefusedRow):
            where = f"{prompts.path}:{request.line}" + (f": {request.key}" if request.key else "")
            raise DataError(request.what, where=where, remedy=request.remedy)


def _settings_of_replies(chosen: GenerateSettings, sampling: RowSampling, prompts: PromptFile) -> dict[str, Any]:
    """Return the settings that replies depend on, except for the model. The settings `threads`, `slots` and `concurrency` are
    left out, because they do not change replies."""
    values = {
        key: getattr(chosen, key) for key in ("raw", "token_ids", "logprobs", "dtype", "device", "max_len", "model")
    }
    values["backend"] = backend_cache_id(chosen.backend)
    return sampling.model_dump(mode="json") | values | {"file": prompts.sha256}


def _defaults_that_apply(task: TaskDefaults, sampling: RowSampling) -> dict[str, Any]:
    """Return the task's defaults, except the defaults of keys that the command line sets."""
    defaults = task.model_dump(mode="json", exclude_none=True)
    return {f"defaults.{key}": value for key, value in defaults.items() if key not in sampling.model_fields_set}
