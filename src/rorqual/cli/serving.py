"""The conversion of the settings of `rorqual serve` to the arguments of the server and the engine process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rorqual.cli.eval_settings import CASCADE, REMOTE, load_client, split_cascade_models
from rorqual.cli.machine import available_cores
from rorqual.cli.settings import parse_settings, refuse_ineffective_settings
from rorqual.cli.verbs.serve import ServeSettings
from rorqual.core.config import parse_config
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.data.fingerprint import fingerprint
from rorqual.evals.calibration import CascadeRule, read_cascade_rule
from rorqual.fine_tuning.routes import router
from rorqual.fine_tuning.service import LadderService, TuneService
from rorqual.fine_tuning.store import LADDER
from rorqual.serve.options import ServerOptions
from rorqual.serve.server import CascadeArguments, serve
from rorqual.serve.wire import EngineArguments
from rorqual.teach.paths import has_answerer

TAUGHT = frozenset(ServerOptions.model_fields) - {"hang", "load", "think_budget"} | {"threads"}
"""Settings that have an effect on a folder that `rorqual teach` wrote."""
FALLBACK = ("fallback_model", "fallback_budget", "price_in", "price_out")
"""Settings that have an effect with `fallback`."""
TUNING = ("tune_names", "tune_jobs", "tune_bytes", "tune_memory")
"""Settings that have an effect with `tune`."""
ENGINE = ("slots", "max_len", "record_kept", "cache_dir", "disk_bytes", "cache_bytes", "step_tokens", "backend")
"""Settings of `rorqual serve` that are passed to the engine under the same name. If a setting is 0 or an empty string, the
engine's default applies."""


def start_server(model: str, arguments: Sequence[str] | None) -> None:
    """Serve a run, a cascade (`cascade=STUDENT,TEACHER`) or what `rorqual teach` chose, until the process is stopped."""
    chosen = parse_settings(ServeSettings, arguments)
    if has_answerer(Path(model)):
        from rorqual.teach.serving import serve_answerer  # a local import, because it loads torch

        refuse_ineffective_settings(chosen, TAUGHT | {"fallback", *(FALLBACK if chosen.fallback else ())}, model)
        remote = _remote_model(chosen) if chosen.fallback else None
        serve_answerer(Path(model), chosen, threads=chosen.threads or available_cores(), remote=remote)
        return
    if given := chosen.model_fields_set.intersection(("fallback", *FALLBACK)):
        raise ConfigError(
            "only what `rorqual teach` chose has a fallback",
            where=f"key '{min(given)}'",
            remedy="Leave it out, or serve a folder of rorqual teach.",
        )
    student, *teacher = split_cascade_models(model.removeprefix(CASCADE)) if model.startswith(CASCADE) else (model,)
    cascade = calibrated_cascade_rule(student, teacher[0], chosen) if teacher else None
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
        threads=chosen.threads or available_cores(),
        rollout_dir=chosen.rollout_dir,
        engine={name: value for name in ENGINE if (value := getattr(chosen, name))},
    )
    if chosen.tune:
        if cascade is not None or chosen.rollout_dir:
            raise ConfigError("only a server of one run tunes models", where="key 'tune'", remedy="Serve one run.")
        if chosen.backend not in ("auto", "native", "torch", "torch-invariant"):
            raise ConfigError(
                f"the backend '{chosen.backend}' runs no tuned models", where="key 'backend'", remedy="Leave it out."
            )
        _serve_with_tuning(engine, chosen)
        return
    if given := chosen.model_fields_set.intersection(TUNING):
        raise ConfigError(
            "it has no effect without tune=FOLDER", where=f"key '{min(given)}'", remedy="Add tune=FOLDER."
        )
    if cascade is None:
        serve(engine, chosen)
        return
    folder = {"cache_dir": str(Path(chosen.cache_dir) / "teacher")} if chosen.cache_dir else {}
    other = replace(engine, run=teacher[0], engine=engine.engine | folder)
    serve(
        engine,
        chosen,
        CascadeArguments(
            other, cascade.calibration, cascade.sure if chosen.sure is None else chosen.sure, cascade.temperature
        ),
    )


def _serve_with_tuning(engine: EngineArguments, chosen: ServeSettings) -> None:
    """Serve a run with the fine-tuning API."""
    extend = partial(
        TuneService.extend,
        base=RunDir(Path(engine.run)),
        folder=Path(chosen.tune),
        names=_base_names(chosen.tune_names, engine.run),
        tenant_bytes=chosen.tune_bytes,
        at_once=chosen.tune_jobs,
        memory=chosen.tune_memory,
        threads=engine.threads,
        load_ladder=_load_ladder,
    )
    serve(engine, chosen, extend=extend, routers=[router])


def _base_names(table: str, run: str) -> dict[str, str]:
    """Return what each name in `tune_names` means: "" for the served run, or the ladder. Raises ConfigError for another base."""
    pairs = ([part.strip() for part in entry.partition("=")[::2]] for entry in table.split(",") if entry.strip())
    names = {name: "" if base == run else base for name, base in pairs}
    for name, base in names.items():
        if base not in ("", LADDER):
            raise ConfigError(
                f"the base '{base}' of '{name}' is not served here",
                where="key 'tune_names'",
                remedy=f"Give {name} for the served run or {name}={LADDER}, or serve {base} by a server of its own.",
            )
    return names


def _load_ladder(folder: Path, *, threads: int, **fields: Any) -> LadderService:
    from rorqual.teach.answerer import load_answerer  # local imports, because they load torch
    from rorqual.teach.serving import AnswererService

    return AnswererService(**fields, answerer=load_answerer(folder, threads=threads))


def _remote_model(chosen: ServeSettings) -> Any:
    """Return the client of the fallback's model, and its budget."""
    from rorqual.factory.config import RemoteAccess  # a local import, because it loads torch

    engine = load_client(chosen.fallback, chosen.fallback_model, seed_bits=31, concurrency=1)
    money = {"budget": chosen.fallback_budget, "price_in": chosen.price_in, "price_out": chosen.price_out}
    return engine, parse_config(RemoteAccess, money, where="key 'fallback_budget'")


def calibrated_cascade_rule(student: str, teacher: str, chosen: ServeSettings) -> CascadeRule:
    """Read the calibrated rule of a cascade. Raises ConfigError if the calibration is missing, was measured on other
    checkpoints of the two runs, or does not use log-probabilities as confidence."""
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
    cascade = read_cascade_rule(Path(chosen.calibration))
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
