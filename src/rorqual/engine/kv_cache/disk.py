"""The on-disk prefix cache: one authenticated file per block, written by a background thread. Blocks on disk survive restarts
and killed processes.

A damaged or changed file is a cache miss. The store removes and counts damaged and changed files. Only the user's own processes
can write to the store's folder, because only the folder's owner may enter the folder.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import struct
import sys
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from rorqual.core.errors import ConfigError
from rorqual.core.lock import Closable, Lock
from rorqual.core.records import write_atomic
from rorqual.engine.kv_cache.block_hash import KEY_BYTES

SUFFIX = ".rqblock"
SECRET_FILE, LOCK_FILE = "secret", "lock"
SECRET_BYTES = 32
VERSION = 1
QUEUE_BYTES = 64 << 20
_BLOCK_FILE = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}{re.escape(SUFFIX)}")
_HEAD = struct.Struct(f"<8sIQ{KEY_BYTES}s")  # magic, version, payload length in bytes, key
_MAC_BYTES = 32
_OVERHEAD = _HEAD.size + _MAC_BYTES
# Block size of nearly all file systems. File sizes are rounded up to whole blocks, as `du` does.
_PAGE = 4096


class DiskStore(Closable):
    """An LRU key-value store of payloads in a folder, limited to `budget_bytes` of disk.

    `fingerprint` identifies the weights: files that were written with other weights are cache misses. `secret` [32 bytes]
    authenticates the files. The secret is created together with the folder of the disk cache. `put` never waits for a write to
    disk. `DiskStore` does not raise disk errors of reads and writes. The constructor raises ConfigError if the folder is
    unusable or other users can write to the folder, and RorqualError if another process uses the folder.
    """

    def __init__(self, folder: Path, budget_bytes: int, fingerprint: bytes, *, queue_bytes: int = QUEUE_BYTES) -> None:
        if budget_bytes < 1:
            raise ConfigError(
                f"the disk cache has a budget of {budget_bytes} bytes",
                where=str(folder),
                remedy="Set disk_bytes to 1 or more, or leave out cache_dir.",
            )
        self.folder, self.budget, self.queue_bytes = folder, budget_bytes, queue_bytes
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # sizes of files on disk, least recently used first
        # Payloads to write. The writer thread may be writing the first pending payload.
        self._pending: OrderedDict[bytes, bytes] = OrderedDict()
        self._pending_bytes = 0
        self._total = 2 * _PAGE  # disk space of the secret file and the lock file
        self._counts = dict.fromkeys(("written", "read", "damaged", "dropped", "evicted"), 0)
        self._last = 0
        self._closing = self._error_reported = False
        self._changed = threading.Condition()
        try:
            _make_private(folder)
            self._lock = Lock(folder / LOCK_FILE, folder, "Stop that process, or give each engine its own folder.")
            self.secret = _read_or_create_secret(folder / SECRET_FILE)
            self._build_index()
        except OSError as error:
            raise ConfigError(
                f"cannot use this folder for the disk cache: {error.strerror}",
                where=str(folder),
                remedy="Make the folder writable and free disk space, choose another folder, or leave out cache_dir.",
            ) from error
        self._mac_key = blake2b(fingerprint, key=self.secret, digest_size=32, person=b"rorqual store").digest()
        self._writer = threading.Thread(target=self._write_queued_payloads, name="rorqual cache writer", daemon=True)
        self._writer.start()

    def stats(self) -> dict[str, int]:
        """Return the counters of the disk cache by name.

        The counters `written`, `read`, `damaged` and `evicted` count files, and `dropped` counts payloads. `files` and `bytes`
        are the number and the total size of the files on disk.
        """
        with self._changed:
            return {**self._counts, "files": len(self._sizes), "bytes": self._total}

    def has(self, key: bytes) -> bool:
        """Return whether a payload is stored or queued under `key`. `has` does not change the LRU order."""
        with self._changed:
            return not self._closing and (key in self._sizes or key in self._pending)

    def put(self, key: bytes, payload: bytes | memoryview) -> bool:
        """Queue a copy of a payload for writing under a 32-byte key, unless a payload is already stored under the key.

        `put` returns False if the payload is dropped because the write queue is full, `budget_bytes` is too small or the store
        is closed.
        """
        size = _size_on_disk(memoryview(payload).nbytes + _OVERHEAD)
        with self._changed:
            if not self._closing and (key in self._sizes or key in self._pending):
                return True
            full = self._pending and self._pending_bytes + size > self.queue_bytes
            if self._closing or full or 2 * _PAGE + size > self.budget:
                self._counts["dropped"] += 1
                return False
            self._pending[key] = bytes(payload)
            self._pending_bytes += size
            self._changed.notify_all()
            return True

    def get(self, key: bytes) -> bytes | None:
        """Return the payload of `key`. Return None if no payload is stored under `key`, or if the file of `key` is damaged."""
        with self._changed:
            if self._closing or key not in self._sizes:
                return None if self._closing else self._pending.get(key)
            self._sizes.move_to_end(key)
            file = self._file(key)
            if not file.is_file():
                self._remove_entry(key, damaged=os.path.lexists(file))
                return None
            try:
                opened = file.open("rb")  # while holding the lock, so that the writer cannot evict the file first
            except OSError:
                return None  # an error such as too many open files does not mean that the file is damaged
        with opened:
            fits = os.fstat(opened.fileno()).st_size <= self.budget
            payload = self._verify_payload(key, opened.read()) if fits else None
        with self._changed:
            if payload is None:
                if not self._closing:
                    self._remove_entry(key, damaged=True)
                return None
            self._counts["read"] += 1
        with suppress(OSError):  # keep serving if the disk was remounted read-only
            os.utime(file, ns=self._next_file_times())
        return payload

    def flush(self) -> None:
        """Wait until all queued payloads are written to disk or dropped."""
        with self._changed:
            while self._pending and self._writer.is_alive():
                self._changed.wait(0.1)

    def close(self) -> None:
        """Write the queued payloads to disk and unlock the folder. After `close`, every `get` is a cache miss and every `put`
        drops its payload."""
        self.flush()
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._writer.join()
        self._lock.close()

    # Callers of `_remove_entry` and `_evict` hold the lock, except in the constructor.

    def _remove_entry(self, key: bytes, *, damaged: bool) -> None:
        self._counts["damaged"] += damaged
        if key in self._sizes:
            self._total -= self._sizes.pop(key)
            with suppress(OSError):
                self._file(key).unlink()

    def _evict(self, size: int) -> None:
        while self._sizes and self._total + size > self.budget:
            self._remove_entry(next(iter(self._sizes)), damaged=False)
            self._counts["evicted"] += 1

    def _build_index(self) -> None:
        """Build the index of keys from the files in the folder, least recently used first.

        A file is indexed if the file's name and size can be the name and size of a block file. Any other file with the suffix
        `SUFFIX` is a leftover and is removed. Files without the suffix `SUFFIX` are not touched.
        """
        blocks: list[tuple[int, bytes, int]] = []
        for file in self.folder.glob(f"*{SUFFIX}"):
            status = file.lstat()
            size = _size_on_disk(status.st_size)
            if _BLOCK_FILE.fullmatch(file.name) and status.st_size >= _OVERHEAD and size <= self.budget:
                blocks.append((status.st_mtime_ns, bytes.fromhex(file.name.removesuffix(SUFFIX)), size))
            elif not file.is_dir():
                file.unlink()
        for _, key, size in sorted(blocks):
            self._sizes[key] = size
            self._total += size
        self._evict(0)

    def _write_queued_payloads(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closing:
                    self._changed.wait()
                if not self._pending:
                    return
                key, payload = next(iter(self._pending.items()))
                size = _size_on_disk(len(payload) + _OVERHEAD)
                self._evict(size)
            error = self._write_block_file(key, payload)
            with self._changed:
                del self._pending[key]
                self._pending_bytes -= size
                if error is None:
                    self._sizes[key] = size
                    self._total += size
                    self._counts["written"] += 1
                else:
                    self._counts["dropped"] += 1
                self._changed.notify_all()
            if error is not None and not self._error_reported:
                self._error_reported = True
                print(f"{self.folder}: cannot write to the disk cache: {error.strerror}", file=sys.stderr)

    def _write_block_file(self, key: bytes, payload: bytes) -> OSError | None:
        """Write a block file under a temporary name, and rename the file. The block file is not synced to disk. A block file
        that a power failure left incomplete has a wrong authentication code and is therefore a cache miss."""
        temporary = self.folder / f"{key.hex()}.{os.getpid()}.part{SUFFIX}"
        head = _file_header(key, len(payload))
        try:
            temporary.write_bytes(head + self._auth_code(head, payload) + payload)
            os.utime(temporary, ns=self._next_file_times())
            temporary.replace(self._file(key))
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            return error
        return None

    def _verify_payload(self, key: bytes, raw: bytes) -> bytes | None:
        """Return the payload of a block file with the contents `raw`, or None if the file is damaged or was changed."""
        head, code, payload = raw[: _HEAD.size], raw[_HEAD.size : _OVERHEAD], raw[_OVERHEAD:]
        expected = _file_header(key, len(payload))
        return payload if head == expected and hmac.compare_digest(code, self._auth_code(expected, payload)) else None

    def _auth_code(self, head: bytes, payload: bytes) -> bytes:
        code = blake2b(head, key=self._mac_key, digest_size=_MAC_BYTES)
        code.update(payload)
        return code.digest()

    def _file(self, key: bytes) -> Path:
        return self.folder / (key.hex() + SUFFIX)

    def _next_file_times(self) -> tuple[int, int]:
        """Return new access and modification times for a block file, in ns.

        The file times increase strictly, because after a restart the LRU order is read from the file times.
        """
        with self._changed:
            self._last = max(self._last + 1, time.time_ns())
            return self._last, self._last


def _make_private(folder: Path) -> None:
    """Create the folder of a disk cache, with access for the owner only. Raises ConfigError if other users could write to the
    folder of the disk cache."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o022:
        raise ConfigError(
            "other users can write to this folder",
            where=str(folder),
            remedy="Run `chmod 700` on the folder, or choose another folder.",
        )
    folder.chmod(0o700)


def _read_or_create_secret(file: Path) -> bytes:
    """Return the secret of a disk cache. If the secret is missing or incomplete, a new secret is created, and all existing
    block files become cache misses."""
    if not file.is_file() or len(file.read_bytes()) != SECRET_BYTES:
        write_atomic(file, secrets.token_bytes(SECRET_BYTES))
    return file.read_bytes()


def _file_header(key: bytes, length: int) -> bytes:
    return _HEAD.pack(b"rorqualB", VERSION, length, key)


def _size_on_disk(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
