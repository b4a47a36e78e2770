"""What `rorqual serve` is told, as the server takes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from rorqual.cli.machine import cores
from rorqual.cli.settings import Placement, read
from rorqual.core.config import Bytes, Natural
from rorqual.serve.cors import origins
from rorqual.serve.keys import default_file
from rorqual.serve.run import Address, serve
from rorqual.serve.wire import Placed


class ServeSettings(Placement):
    """`max_len` 0: the model's context, as far as the cache holds it. `threads` 0: as many as there are cores. `keys`: the file of hashes.
    `ui`: the chat page; without a word, where Gradio is installed. `hang`: seconds of work without a sign of life after which the
    engine is started again; `load`: seconds that it may take to be ready. `cache_dir`: a folder for the prefix cache, which then outlives the
    server, up to `disk_bytes`; `cache_bytes`: of keys and values in memory, 0: a GiB.
    `step_tokens`: of a step at most, so that a long prompt delays nobody's next token by more. `operator`: the tenant whose key reads
    everybody's figures. `stall`: seconds after which a client that does not read its answer is cut off. `cors`: origins whose scripts may
    ask, with commas. `rollout_dir`: a folder for weights that a trainer sends; with it the server is a rollout engine, too, with a key of its
    own. `record_kept`: rollouts bring the sets that top-p and top-k left.
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
    ui: bool | None = None
    operator: str = "default"
    stall: float = Field(30, ge=0.1, le=3600)
    cors: str = ""
    rollout_dir: str = ""
    record_kept: bool = False


def start(run: Path, arguments: Sequence[str] | None) -> None:
    """Serve `run` until it is stopped."""
    chosen = read(ServeSettings, arguments)
    placed = Placed(
        run=str(run),
        device=chosen.device,
        dtype=chosen.dtype,
        slots=chosen.slots,
        threads=chosen.threads or cores(),
        max_len=chosen.max_len,
        cache_dir=chosen.cache_dir,
        cache_bytes=chosen.cache_bytes,
        disk_bytes=chosen.disk_bytes,
        backend=chosen.backend,
        step_tokens=chosen.step_tokens,
        rollout_dir=chosen.rollout_dir,
        record_kept=chosen.record_kept,
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
    )
    serve(placed, address)
