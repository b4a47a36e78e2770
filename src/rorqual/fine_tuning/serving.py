"""A server of a run with OpenAI's fine-tuning API: `rorqual serve RUN tune=FOLDER`."""

from __future__ import annotations

from pathlib import Path

from rorqual.core.records import RunDir
from rorqual.fine_tuning.routes import router
from rorqual.fine_tuning.service import TuneService, TuningOptions
from rorqual.serve.options import ServerOptions
from rorqual.serve.server import serve
from rorqual.serve.wire import EngineArguments


def serve_with_tuning(engine: EngineArguments, address: ServerOptions, options: TuningOptions) -> None:
    """Serve a run with the fine-tuning API until a signal stops the server. Raises RorqualError if the server cannot start."""
    base = RunDir(Path(engine.run))
    serve(engine, address, extend=lambda service: TuneService.extend(service, base, options), routers=[router])
