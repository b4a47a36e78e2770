"""A process that fills a cache on disk, killed at random moments; what the next one finds."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from rorqual.engine.kv_cache.disk import SUFFIX, DiskStore

BUDGET = 8 << 20
KEYS = 200


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def exact(number: int) -> bytes:
    """The one payload of a key: 1 to 400 KiB."""
    draw = random.Random(number)
    return draw.randbytes(draw.randint(1 << 10, 400 << 10))


def opened(folder: Path) -> DiskStore:
    return DiskStore(folder, BUDGET, b"weights")


@dataclass(frozen=True)
class Kill:
    """What the start after a kill found: half-written files, and of all keys those that hit, missed, and brought anything else."""

    leftovers: int
    hits: int
    misses: int
    wrong: int
    damaged: int
    bytes: int


def fill(folder: Path, seed: int, tell: Connection) -> None:
    """Puts and gets until killed; says "ready", and "wrong" where a payload is another."""
    draw, store = random.Random(seed), opened(folder)
    tell.send("ready")
    while True:
        number = draw.randrange(KEYS)
        found = store.get(key_of(number))
        if found is None:
            store.put(key_of(number), exact(number))
        elif found != exact(number):
            tell.send("wrong")


def kill_writers(folder: Path, *, kills: int, seed: int) -> list[Kill]:
    """Kills `kills` writers, one after another, every second one while it writes, and looks at every key after each."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["rorqual.engine.kv_cache.disk"])  # or each writer would import for seconds
    draw, found = random.Random(seed), []
    for number in range(kills):
        told, tell = server.Pipe(duplex=False)
        writer = server.Process(target=fill, args=(folder, seed * 1_000 + number, tell))
        writer.start()
        tell.close()
        first = told.recv()
        time.sleep(draw.uniform(0, 0.25))
        if number % 2:  # a random moment is rarely in the middle of a write
            _wait_for_write(folder)
        writer.kill()
        writer.join()
        found.append(_look(folder, wrong=int(first != "ready" or _more(told))))
    return found


def _wait_for_write(folder: Path, seconds: float = 1.0) -> None:
    """Returns while a file is half-written, or after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not any(name.endswith(f".part{SUFFIX}") for name in os.listdir(folder)):
        pass


def _more(told: Connection) -> bool:
    try:
        return told.poll() and told.recv() is not None
    except EOFError:
        return False


def _look(folder: Path, wrong: int) -> Kill:
    leftovers = len(list(folder.glob(f"*.part{SUFFIX}")))
    hits = misses = 0
    with opened(folder) as store:
        for number in range(KEYS):
            payload = store.get(key_of(number))
            hits += payload is not None
            misses += payload is None
            wrong += payload not in (None, exact(number))
        on_disk = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
        wrong += on_disk > BUDGET or any(folder.glob(f"*.part{SUFFIX}"))
        return Kill(leftovers, hits, misses, wrong, store.stats()["damaged"], on_disk)
