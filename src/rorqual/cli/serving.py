"""Settings of `rorqual serve`, and their conversion to the arguments of the server and the engine process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from rorqual.cli.machine import cores
from rorqual.cli.measure import CASCADE, REMOTE, models_of
from rorqual.cli.settings import Placement, read
from rorqual.core.config import Bytes, Natural, Share
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.data.fingerprint import fingerprint
from rorqual.evals.calibration import CascadeRule, read_rule
from rorqual.serve.cors import origins
from rorqual.serve.keys import default_file
from rorqual.serve.run import Address, CascadeArguments, serve
from rorqual.serve.wire import EngineArguments

ENGINE = ("slots", "max_len", "record_kept", "cache_dir", "disk_bytes", "cache_bytes", "step_tokens", "backend")
"""Settings that are passed to the engine under the same name. A value of 0 or an empty string selects the engine's default."""


class ServeSettings(Placement):
    """Settings of `rorqual serve`.

    - `max_len`: context length in tokens; 0 uses the model's context length. A small KV cache may limit the context
      to less than `max_len`.
    - `threads`: number of threads of the engine process; 0 uses all cores.
    - `keys`: the file with the hashes of API keys.
    - `ui`: whether to serve the chat page.
    - `hang`: restart a busy engine process after this many seconds without a heartbeat.
    - `load`: maximum seconds that the engine process may take to load.
    - `cache_dir`: folder for the on-disk prefix cache, which survives restarts.
    - `disk_bytes`: maximum size of the on-disk prefix cache.
    - `cache_bytes`: size of the KV cache in memory; 0 uses the engine's default, 1 GiB.
    - `step_tokens`: maximum number of tokens per engine step. Fewer tokens per step shorten the delay
      that a long prompt causes for other requests.
    - `operator`: the tenant whose key may read the metrics of all tenants.
    - `stall`: disconnect a client that reads nothing for this many seconds.
    - `cors`: allowed origins, separated by commas.
    - `think_budget`: maximum thinking tokens of a chat reply, unless the request sets its own; 0 sets no maximum.
    - `calibration`: result file of `rorqual eval cascade=STUDENT,TEACHER`, for a cascade.
    - `sure`: confidence from which on the student's answer is kept; None uses that of the calibration.
    - `rollout_dir`: folder for weights that a trainer sends. If `rollout_dir` is set, the server also generates
      rollouts, which need a separate key.
    - `record_kept`: whether rollouts contain the sets of tokens that top-p and top-k kept.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    name: str = Field("", max_length=256)
    tenant: str = "default"
    keys: str = ""
    slots: int = Field(16, ge=1, le=4096)
    max_len: Natural = 0
    queue: int = Field(256, ge=1, le=100_000)
    max_body: int = Field(8 * 2**20, ge=1024, le=2**30)
    grace: float = Field(30, ge=1, le=3600)
    threads: Natural = 0
    hang: float = Field(120, ge=1, le=86_400)
    load: float = Field(3600, ge=1, le=86_400)
    cache_dir: str = ""
    cache_bytes: Bytes = 0
    disk_bytes: int = Field(4 << 30, ge=1 << 20, le=2**63 - 1)
    backend: str = "torch-invariant"
    step_tokens: int = Field(256, ge=32, le=2**63 - 1)
    ui: bool = True
    operator: str = "default"
    stall: float = Field(30, ge=0.1, le=3600)
    cors: str = ""
    think_budget: Natural = 0
    calibration: str = ""
    sure: Share | None = None
    rollout_dir: str = ""
    record_kept: bool = False


def start(model: str, arguments: Sequence[str] | None) -> None:
    """Serve a run, or cascade=STUDENT,TEACHER, until the process is stopped."""
    chosen = read(ServeSettings, arguments)
    student, *teacher = models_of(model.removeprefix(CASCADE)) if model.startswith(CASCADE) else (model,)
    cascade = cascade_of(student, teacher[0], chosen) if teacher else None
    if cascade is None and (chosen.calibration or chosen.sure is not None):
        raise ConfigError(
            "only a cascade has a calibration",
            where=f"key '{'calibration' if chosen.calibration else 'sure'}'",
            remedy="Leave it out, or serve cascade=STUDENT,TEACHER.",
        )
    engine = EngineArguments(
        run=student,
        device=chosen.device,
        dtype=chosen.dtype,
        threads=chosen.threads or cores(),
        rollout_dir=chosen.rollout_dir,
        engine={name: value for name in ENGINE if (value := getattr(chosen, name))},
    )
    address = Address(
        host=chosen.host,
        port=chosen.port,
        name=chosen.name,
        keys=Path(chosen.keys) if chosen.keys else default_file(),
        tenant=chosen.tenant,
        queue=chosen.queue,
        max_body=chosen.max_body,
        grace=chosen.grace,
        hang=chosen.hang,
        load=chosen.load,
        ui=chosen.ui,
        operator=chosen.operator,
        stall=chosen.stall,
        cors=origins(chosen.cors),
        think_budget=chosen.think_budget,
    )
    if cascade is None:
        serve(engine, address)
        return
    folder = {"cache_dir": str(Path(chosen.cache_dir) / "teacher")} if chosen.cache_dir else {}
    other = replace(engine, run=teacher[0], engine=engine.engine | folder)
    serve(
        engine,
        address,
        CascadeArguments(
            other, cascade.calibration, cascade.sure if chosen.sure is None else chosen.sure, cascade.temperature
        ),
    )


def cascade_of(student: str, teacher: str, chosen: ServeSettings) -> CascadeRule:
    """Read the calibration of a cascade. Raises ConfigError if it is missing, or of other models, or not by log-probability."""
    remedy = f"Run rorqual eval {CASCADE}{student},{teacher} task=... out=FILE.json, and give calibration=FILE.json."
    if not chosen.calibration:
        raise ConfigError("a cascade needs a calibration", where="key 'calibration'", remedy=remedy)
    if remote := [model for model in (student, teacher) if model.startswith(REMOTE)]:
        raise ConfigError(
            "a served cascade needs two runs, because the server bills the tokens of both models",
            where=remote[0],
            remedy="Give the folder of a run.",
        )
    if chosen.rollout_dir:
        raise ConfigError("a cascade gives no rollouts", where="key 'rollout_dir'", remedy="Serve one run.")
    cascade = read_rule(Path(chosen.calibration))
    measured = [cascade.student, cascade.teacher]
    prints = tuple(fingerprint(run, run.checkpoint()) for run in (RunDir(Path(student)), RunDir(Path(teacher))))
    if prints != cascade.fingerprints:
        raise ConfigError(
            f"the calibration is for other checkpoints: those of {CASCADE}{','.join(measured)} at that time",
            where=chosen.calibration,
            remedy=remedy,
        )
    if cascade.calibration.signal != "logprob":
        raise ConfigError(
            "the calibration is by votes, but a server draws one sample",
            where=chosen.calibration,
            remedy="Evaluate the cascade without votes.",
        )
    return cascade
