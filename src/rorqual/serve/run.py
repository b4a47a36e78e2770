"""The server's life cycle: open the port, load keys, start the engine, serve, shut down gracefully."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import uvicorn

from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.data.chat import load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.app import create_app
from rorqual.serve.bridge import Bridge
from rorqual.serve.connections import ConnectionLimit, TimedProtocol
from rorqual.serve.descriptors import AT_ONCE, Complaints, raise_limit
from rorqual.serve.keys import Keys
from rorqual.serve.logs import WINDOW, Quiet
from rorqual.serve.service import Service, read_defaults
from rorqual.serve.ui import Page
from rorqual.serve.uploads import WeightUploads
from rorqual.serve.wire import Placed

BACKLOG = 2048
UNREAD = 131_072
"""The socket's send buffer in bytes. The server itself buffers another 64 KiB for a client that does not read."""


@dataclass(frozen=True)
class Address:
    """Where and under which limits the server listens.

    `grace`: seconds that running requests get after a shutdown signal. `ui`: see `wanted` of `Page`. `hang`: restart an
    engine that works this many seconds without a heartbeat. `load`: seconds that it may take to become ready. `operator`:
    the tenant that may read the metrics of all tenants. `stall`: disconnect a client that reads nothing for this many
    seconds. `cors`: allowed origins.
    """

    host: str
    port: int
    name: str
    keys: Path
    tenant: str
    queue: int
    max_body: int
    grace: float
    ui: bool | None = None
    hang: float = 120.0
    load: float = 3600.0
    operator: str = "default"
    stall: float = 30.0
    cors: frozenset[str] = frozenset()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers: `_until_stopped` handles signals, also while the engine is loading."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Restore the long listen backlog. asyncio uses one `backlog` for it and for the connections accepted at once."""
        await super().startup(sockets)
        for door in sockets or ():
            door.listen(BACKLOG)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Port 0 chooses a free one.

    Raises ConfigError if the port is in use or the host is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)  # connections inherit it
            found.bind(address)
            found.listen(BACKLOG)
        except OSError:
            found.close()
            raise
        return found
    except OSError as error:
        remedies = {
            errno.EADDRINUSE: f"Another program uses this port. Try port={port + 1}, or port=0 for any free port.",
            errno.EACCES: "Ports below 1024 need root. Choose another, for example port=8000.",
        }
        remedy = remedies.get(
            error.errno or 0, "Use host=127.0.0.1 for clients on this machine only, host=0.0.0.0 for all."
        )
        raise ConfigError(f"cannot listen: {error.strerror}", where=f"{host}:{port}", remedy=remedy) from None


def check_folder(folder: Path) -> None:
    """Create a folder and check that files can be written there. Raises ConfigError otherwise, before anything is loaded."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"rorqual")
    except OSError as error:
        raise ConfigError(
            f"cannot store the prefix cache here: {error.strerror}",
            where=f"cache_dir={folder}",
            remedy="Give a folder that you may write to, or leave cache_dir out to keep the cache in memory only.",
        ) from None


def serve(placed: Placed, address: Address) -> None:
    """Serve a run until a signal stops the server. Raises RorqualError if it cannot start."""
    run = RunDir(Path(placed.run))
    checkpoint = run.checkpoint()
    chat = load_chat(run, Tokenizer.load(run.tokenizer_file))
    if cache_dir := placed.engine.get("cache_dir"):
        check_folder(Path(cache_dir))
    with listen(address.host, address.port) as door:
        keys = Keys.load(address.keys)
        key = keys.ensure(address.tenant)
        uploads, rollout_key = WeightUploads.begin(Path(placed.rollout_dir)) if placed.rollout_dir else (None, None)
        service = Service(
            name=address.name or run.path.resolve().name,
            created=int(checkpoint.stat().st_mtime),
            chat=chat,
            bridge=Bridge(
                placed,
                queue=address.queue,
                tenants=len({*keys.tenants.values()}),
                hang=address.hang,
                load=address.load,
            ),
            keys=keys,
            operator=address.operator,
            max_body=address.max_body,
            defaults=read_defaults(run),
            cors=address.cors,
            uploads=uploads,
        )
        if key is not None:
            _say(f"API key of tenant '{address.tenant}', shown only once: {key}")
        if rollout_key is not None:
            _say(f"rollout key, shown only once: {rollout_key}")
        page = Page(create_app(service), service, address.ui)
        asyncio.run(_until_stopped(service, page, door, address))


async def _until_stopped(service: Service, page: Page, door: socket.socket, address: Address) -> None:
    limit = raise_limit()
    # Garbage collection must not traverse objects that live as long as the server, because it blocks the event loop.
    gc.freeze()
    config = uvicorn.Config(
        page,
        # Half of the descriptors are for connections. The rest is for closing connections, the engine's pipes and files.
        http=cast(type[asyncio.Protocol], partial(TimedProtocol, lobby=ConnectionLimit(limit // 2), stall=address.stall)),
        backlog=min(AT_ONCE, limit // 8),
        ws="none", lifespan="off", log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=max(1, round(address.grace)),
    )  # fmt: skip
    quiet = Quiet()
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(quiet)
    server = _Server(config)
    stopped = asyncio.Event()

    def stop() -> None:
        server.force_exit = stopped.is_set()  # the second signal does not wait
        server.should_exit = True
        page.close()
        stopped.set()

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(Complaints())
    # SIGHUP means that the terminal closed. If it is ignored (`nohup`), it stays ignored.
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    for number in (signal.SIGINT, signal.SIGTERM, *hangup):
        loop.add_signal_handler(number, stop)
    loading = asyncio.create_task(service.bridge.start())
    stopping = asyncio.create_task(stopped.wait())
    telling = asyncio.create_task(_told(quiet))
    try:
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            host, port = door.getsockname()[:2]
            _say(f"{service.name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1")
            await server.serve(sockets=[door])
    finally:
        for task in (loading, stopping, telling):
            task.cancel()
        await service.bridge.stop()
        service.close()
        quiet.flush()
    _say("stopped")


async def _told(quiet: Quiet) -> None:
    while True:
        await asyncio.sleep(WINDOW)
        quiet.flush()


def _say(text: str) -> None:
    print(f"rorqual serve: {text}", file=sys.stdout, flush=True)
