"""Run `rorqual generate`: answer a file of prompts with a run or a server, into an output that survives kills."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from rorqual.cli.evaluating import arithmetic, loaded
from rorqual.cli.machine import cores
from rorqual.cli.measure import REMOTE, SeedBits
from rorqual.cli.settings import WHERE, Placement, check_device, pairs
from rorqual.core.config import Natural, parse, scalar
from rorqual.core.errors import ConfigError, DataError, RorqualError, nearest
from rorqual.core.log import Progress, clock
from rorqual.core.records import RunDir
from rorqual.engine.engine import Engine
from rorqual.engine.remote.engine import RemoteEngine
from rorqual.generate.batch import Answered, answers, answers_from_afar, fault_of, record, refused
from rorqual.generate.output import Partial, check_place
from rorqual.generate.prompts import TEXTS, Prompts, Refused
from rorqual.generate.schema import Asking, RowRequest, RowSampling
from rorqual.ops.backends import arithmetic_of, backend
from rorqual.ops.backends.torch_invariant import NOT_HELD

SHOWN = 3
"""Number of refused lines that the summary shows."""


class GenerateSettings(Placement):
    """Settings of `rorqual generate`, apart from sampling parameters.

    `raw`: continue each prompt as plain text, without the chat template. `token_ids`, `logprobs`: write these, too.
    `strict`: stop at the first bad line, before anything runs. `slots`: concurrent sequences. `max_len`: 0 means the
    model's context length.
    """

    run: str = ""
    out: str = ""
    raw: bool = False
    token_ids: bool = False
    logprobs: bool = False
    strict: bool = False
    quiet: bool = False
    slots: int = Field(64, ge=1, le=4096)
    max_len: Natural = 0
    threads: Natural = 0
    model: str = ""
    concurrency: int = Field(8, ge=1, le=1024)
    seed_bits: SeedBits = 64
    backend: str = "torch-invariant"


def read_settings(arguments: Sequence[str] | None) -> tuple[GenerateSettings, RowSampling]:
    """Split the arguments into the command's settings and the default sampling parameters of rows.

    Raises ConfigError if a key is unknown, or if `run` or `out` is missing.
    """
    own, sampling = dict[str, str](), dict[str, Any]()
    for key, value in pairs(arguments).items():
        if key in RowSampling.model_fields:
            sampling[key] = scalar(value)
            if key in TEXTS and not isinstance(sampling[key], list):
                sampling[key] = value
        elif key in GenerateSettings.model_fields:
            own[key] = value
        else:
            known = (*RowSampling.model_fields, *GenerateSettings.model_fields)
            raise ConfigError(f"unknown key '{key}'", where=WHERE, remedy=nearest(key, known))
    chosen = parse(GenerateSettings, own, where=WHERE)
    for key, said in (("run", "run=RUN, a run's folder or a server's http://... address"), ("out", "out=FILE.jsonl")):
        if not getattr(chosen, key):
            raise ConfigError(f"{key}= is required", where=WHERE, remedy=f"Give {said}.")
    return chosen, parse(RowSampling, sampling, where=WHERE)


@dataclass(frozen=True)
class Outcome:
    """The result of one command: counts for the whole file, the first refused lines, and the speed of this invocation.

    `answered`, `tokens` and `seconds` count this invocation only; `rows` and `errors` count the whole output.
    """

    rows: int
    errors: int
    shown: tuple[Refused, ...]
    answered: int
    tokens: int
    seconds: float

    def lines(self, out: Path) -> list[str]:
        """Return the summary that the command prints."""
        found = [f"{self.rows:,} lines: {self.rows - self.errors:,} answered, {self.errors:,} refused"]
        if self.answered:
            speed = self.tokens / max(self.seconds, 1e-9)
            found.append(
                f"  this run: {self.answered:,} lines, {self.tokens:,} tokens in {clock(self.seconds)}, {speed:,.1f} tokens/s"
            )
        else:
            found.append("  all lines were already complete")
        found += [f"  line {r.line}: {f'{r.key}: ' if r.key else ''}{r.what}\n    {r.remedy}" for r in self.shown]
        return [*found, f"  {out}"]


def generate_file(file: Path, arguments: Sequence[str] | None) -> tuple[Outcome, Path]:
    """Answer the rows of `file` that have no answer in the output yet. Return the outcome and the output's path."""
    chosen, sampling = read_settings(arguments)
    out = Path(chosen.out)
    check_place(out)
    if out.exists() and file.exists() and out.samefile(file):
        raise ConfigError("out= is the prompt file itself", where="out", remedy="Choose another out=.")
    prompts = Prompts.open(file)
    engine, of = _engine(chosen)
    local = engine if isinstance(engine, Engine) else None
    asking = Asking(sampling, _encoder(local) if chosen.raw and local else None, file.suffix.lower() == ".csv")
    if chosen.strict:
        _check_all(local, prompts, asking)
    made = _made(chosen, sampling, prompts) | of
    with Partial(out, made, rows=prompts.rows, last=prompts.last) as partial:
        if partial.whole:
            return Outcome(prompts.rows, partial.errors, (), 0, 0, 0.0), out
        asks = (asking.ask(line, row) for line, row in prompts.read() if _is_new(partial, prompts, line))
        if isinstance(engine, RemoteEngine):
            answered = answers_from_afar(engine, asks, concurrency=chosen.concurrency)
        else:
            answered = answers(engine, asks, room=2 * chosen.slots)
        outcome = _write(partial, answered, chosen)
        if partial.count != prompts.rows:
            raise DataError(
                "the file changed while it was read",
                where=str(file),
                remedy="Do not change it, and run the command again.",
            )
        partial.finish()
    return outcome, out


def _is_new(partial: Partial, prompts: Prompts, line: int) -> bool:
    if line > prompts.last:
        raise DataError(
            "the file grew while it was read",
            where=str(prompts.path),
            remedy="Do not change it, and run the command again.",
        )
    return not partial.has(line)


def _write(partial: Partial, answered: Iterator[list[Answered]], chosen: GenerateSettings) -> Outcome:
    began, before, tokens = time.monotonic(), partial.count, 0
    shown: list[Refused] = []
    bar = None if chosen.quiet else Progress("generate", partial.rows, unit="line", start=before)
    for some in answered:
        lines = {}
        for asked, samples in some:
            lines[asked.line] = record(asked, samples, token_ids=chosen.token_ids, logprobs=chosen.logprobs)
            tokens += sum(choice["tokens"] for choice in lines[asked.line].get("choices", ()))
            fault = asked if isinstance(asked, Refused) else fault_of(asked, samples)
            if fault is not None and len(shown) < SHOWN:
                shown.append(fault)
        partial.add(lines)
        if bar is not None:
            speed = tokens / max(time.monotonic() - began, 1e-9)
            refusals = f", {partial.errors:,} refused" if partial.errors else ""
            bar.update(partial.count, f"{speed:,.0f} tokens/s{refusals}")
    seconds = time.monotonic() - began
    return Outcome(partial.rows, partial.errors, tuple(shown), partial.count - before, tokens, seconds)


# ---- the model


def _engine(chosen: GenerateSettings) -> tuple[Engine | RemoteEngine, dict[str, Any]]:
    """Return the engine, and the fields that identify it in the output's record of settings."""
    if not chosen.run.startswith(REMOTE):
        local, print_ = loaded(RunDir(Path(chosen.run)), lambda: _local(chosen))
        return local, {"run": print_, **arithmetic()}
    if not chosen.model:
        raise ConfigError(
            "model= is required, because a server may serve several models",
            where=chosen.run,
            remedy="Give model=NAME.",
        )
    for key in ("raw", "token_ids", "logprobs"):
        if getattr(chosen, key):
            raise ConfigError(
                f"{key}=true needs a local engine; a server returns only text",
                where=key,
                remedy=f"Remove {key}=, or give a run's folder.",
            )
    # Each request runs its samples one at a time (concurrency=1), because rows already run concurrently.
    key = os.environ.get("RORQUAL_API_KEY", "")
    engine = RemoteEngine(chosen.run, model=chosen.model, api_key=key, concurrency=1, seed_bits=chosen.seed_bits)
    return engine, {"run": chosen.run, "seed_bits": chosen.seed_bits}


def _local(chosen: GenerateSettings) -> Engine:
    check_device(chosen.device)
    threads = chosen.threads or cores()
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
    if backend(chosen.backend).invariant and not engine.invariant:
        print(NOT_HELD, file=sys.stderr)
    if engine.chat.name == "none" and not chosen.raw:
        raise ConfigError(
            "this is a base model: its tokenizer has no chat template", where=chosen.run, remedy="Give raw=true."
        )
    return engine


def _encoder(engine: Engine) -> Any:
    chat = engine.chat
    return lambda text: [*([] if chat.bos is None else [chat.bos]), *chat.tokenizer.encode(text)]


def _check_all(engine: Engine | None, prompts: Prompts, asking: Asking) -> None:
    """Raise DataError for the first row that cannot be answered."""
    for line, row in prompts.read():
        asked = asking.ask(line, row)
        if isinstance(asked, RowRequest) and engine is not None:
            try:
                engine.check(asked.request)
            except RorqualError as error:
                asked = refused(asked, error)
        if isinstance(asked, Refused):
            where = f"{prompts.path}:{asked.line}" + (f": {asked.key}" if asked.key else "")
            raise DataError(asked.what, where=where, remedy=asked.remedy)


def _made(chosen: GenerateSettings, sampling: RowSampling, prompts: Prompts) -> dict[str, Any]:
    """Return everything but the model that the answers depend on. Threads, slots and concurrency do not affect answers."""
    own = {key: getattr(chosen, key) for key in ("raw", "token_ids", "logprobs", "dtype", "device", "max_len", "model")}
    own["backend"] = arithmetic_of(chosen.backend)
    return sampling.model_dump(mode="json") | own | {"file": prompts.sha256}
