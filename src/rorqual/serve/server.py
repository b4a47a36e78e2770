"""The server's life cycle: open the port, load API keys, start the engine, serve requests, and shut down gracefully."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import APIRouter

from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir, TaskDefaults
from rorqual.core.sampling import SERVER_DEFAULTS
from rorqual.data.chat import ChatFormat, load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.calibration import Calibration
from rorqual.serve.app import ApiKeyMiddleware, create_app
from rorqual.serve.bridge import EngineBridge
from rorqual.serve.connections import ConnectionLimit, TimedProtocol
from rorqual.serve.cors import parse_origins
from rorqual.serve.descriptors import AT_ONCE, raise_open_file_limit
from rorqual.serve.keys import ApiKeys, default_key_file
from rorqual.serve.options import ServerOptions
from rorqual.serve.rate_limit import RateLimit
from rorqual.serve.service import CascadeTeacher, ModelService, Service, read_defaults
from rorqual.serve.uploads import WeightUploads
from rorqual.serve.wire import EngineArguments

LAST_SECONDS = 2
"""Seconds after `grace` in which the last requests get their error responses. Then uvicorn cancels the requests."""
CASCADE_NAME = "cascade"
"""Default name of a served cascade."""
UNREAD = 131_072
"""Size of a socket's send buffer in bytes. For a client that does not read, uvicorn buffers another 64 KiB."""


class _UvicornServer(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not install uvicorn's signal handlers, because `_serve_until_stopped` already handles signals while the engine
        loads."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Port 0 chooses a free port.

    Raises ConfigError if the port is in use or the host is not an address of this machine.
    """
    try:
        sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)  # accepted connections inherit the buffer size
        return sock
    except OSError as error:
        remedies = {
            errno.EADDRINUSE: f"Another program uses this port. Try port={port + 1}, or port=0 for any free port.",
            errno.EACCES: "Ports below 1024 need root. Choose another, for example port=8000.",
        }
        remedy = remedies.get(
            error.errno or 0, "Use host=127.0.0.1 for clients on this machine only, host=0.0.0.0 for all."
        )
        raise ConfigError(f"cannot listen: {error.strerror}", where=f"{host}:{port}", remedy=remedy) from None


@dataclass(frozen=True)
class CascadeArguments:
    """Arguments of a cascade: the teacher's engine, and the rule that decides when the teacher answers (`CascadeTeacher`).

    `temperature` is the sampling temperature of the evaluation that calibrated the student's confidence. Requests use
    `temperature` by default, because the calibration is valid at no other temperature.
    """

    teacher: EngineArguments
    calibration: Calibration
    sure: float
    temperature: float


@contextmanager
def listen_with_keys(address: ServerOptions) -> Iterator[tuple[socket.socket, ApiKeys]]:
    """Open the port and load the API keys. If the tenant has no key, create one and print it."""
    with listen(address.host, address.port) as sock:
        file = Path(address.keys) if address.keys else default_key_file()
        keys = ApiKeys.load(file)
        key = keys.ensure_key(address.tenant)
        if key is None:
            _say(f"the API keys were shown when they were created; {file} has their hashes")
        else:
            _say(f"API key of tenant '{address.tenant}', shown only once: {key}")
        yield sock, keys


def fields_from_options(address: ServerOptions) -> dict[str, Any]:
    """Return the fields of a `Service` that options set. Raises ConfigError if an origin is invalid."""
    return {
        "operator": address.operator,
        "max_body": address.max_body,
        "rate": RateLimit(address.rate, max(address.queue, int(address.rate))),
        "cors": parse_origins(address.cors),
    }


def _load_chat_format(run: RunDir, address: ServerOptions) -> ChatFormat:
    chat = load_chat(run, Tokenizer.load(run.tokenizer_file))
    if address.think_budget and not chat.thinks:
        raise ConfigError(
            f"think_budget={address.think_budget}, but the model's chat format has no thinking",
            where=f"{run.path}, chat format '{chat.name}'",
            remedy="Leave think_budget out.",
        )
    return chat


def serve(
    arguments: EngineArguments,
    address: ServerOptions,
    cascade: CascadeArguments | None = None,
    extend: Callable[[ModelService], ModelService] = lambda service: service,
    routers: Sequence[APIRouter] = (),
) -> None:
    """Serve a run, or a cascade of two runs, until a signal stops the server.

    `extend` may return a service that can do more, which `routers` use. Raises RorqualError if the server cannot start.
    """
    run = RunDir(Path(arguments.run))
    checkpoint = run.checkpoint()
    chat = _load_chat_format(run, address)
    task = TaskDefaults() if cascade else run.task_defaults()
    second = None
    if cascade is not None:
        second = RunDir(Path(cascade.teacher.run))
        second.checkpoint()
        second_chat = _load_chat_format(second, address)
    shared = fields_from_options(address)
    with listen_with_keys(address) as (sock, keys):
        uploads, rollout_key = (
            WeightUploads.open_folder(Path(arguments.rollout_dir)) if arguments.rollout_dir else (None, None)
        )
        service = ModelService(
            name=address.name or (run.path.resolve().name if cascade is None else CASCADE_NAME),
            created=int(checkpoint.stat().st_mtime),
            chat=chat,
            bridge=_create_bridge(arguments, address, keys),
            keys=keys,
            defaults=read_defaults(run),
            uploads=uploads,
            prompts=run.example_prompts(),
            think_budget=address.think_budget,
            task=task,
            **shared,
        )
        if cascade is not None and second is not None:
            # The sampling of the evaluation that calibrated the student's confidence, whatever the runs' own defaults are.
            calibrated = replace(SERVER_DEFAULTS, temperature=cascade.temperature)
            other = replace(
                service,
                chat=second_chat,
                bridge=_create_bridge(cascade.teacher, address, keys),
                defaults=calibrated,
            )
            names = second.path.resolve().name, run.path.resolve().name
            service = replace(
                service, defaults=calibrated, teacher=CascadeTeacher(other, *names, cascade.calibration, cascade.sure)
            )
        if rollout_key is not None:
            _say(f"rollout key, shown only once: {rollout_key}")
        service = extend(service)
        run_until_stopped(service, create_app(service, with_page=address.ui, more=routers), sock, address)


def _create_bridge(arguments: EngineArguments, address: ServerOptions, keys: ApiKeys) -> EngineBridge:
    tenants = len({*keys.tenants.values()})
    return EngineBridge(arguments, queue=address.queue, tenants=tenants, hang=address.hang, load=address.load)


def run_until_stopped(service: Service, app: ApiKeyMiddleware, sock: socket.socket, address: ServerOptions) -> None:
    """Serve requests until a signal stops the process. Raises RorqualError if an engine cannot be loaded."""
    asyncio.run(_serve_until_stopped(service, app, sock, address))


async def _serve_until_stopped(
    service: Service, app: ApiKeyMiddleware, sock: socket.socket, address: ServerOptions
) -> None:
    limit = raise_open_file_limit()
    # Exclude permanent objects from garbage collection, because collection blocks the event loop.
    gc.freeze()
    config = uvicorn.Config(
        app,
        # Half of the file descriptors are for connections. The remaining descriptors are for pipes, files and
        # connections that are being closed.
        http=cast(type[asyncio.Protocol], partial(TimedProtocol, lobby=ConnectionLimit(limit // 2), stall=address.stall)),
        backlog=min(AT_ONCE, limit // 8),
        # Clients without a key can cause warnings, such as those about invalid HTTP, and could fill the log with them.
        ws="none", lifespan="off", log_level="error", access_log=False, server_header=False,
        timeout_graceful_shutdown=round(address.grace) + LAST_SECONDS,
    )  # fmt: skip
    server = _UvicornServer(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.force_exit = server.should_exit  # after a second signal, stop without waiting for running requests
        loop.call_later(0 if server.should_exit else address.grace, fail_requests)
        server.should_exit = True

    def fail_requests() -> None:
        for bridge in service.bridges:
            bridge.close()

    # SIGHUP means that the terminal closed. Under `nohup`, the process must keep ignoring SIGHUP.
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    for number in (signal.SIGINT, signal.SIGTERM, *hangup):
        loop.add_signal_handler(number, stop)
    host, port = sock.getsockname()[:2]
    _say(f"loading {service.name}")
    loading = asyncio.gather(*(bridge.start() for bridge in service.bridges))
    beside = [asyncio.create_task(task) for task in service.tasks()]
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        await asyncio.wait((loading, serving), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            _say(f"{service.name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1")
        await serving
    finally:
        loading.cancel()
        for task in (serving, *beside):
            task.cancel()
        await asyncio.gather(loading, *beside, return_exceptions=True)
        for bridge in service.bridges:
            await bridge.stop()
        service.close()
    _say("stopped")


def _say(text: str) -> None:
    print(f"rorqual serve: {text}", file=sys.stdout, flush=True)
