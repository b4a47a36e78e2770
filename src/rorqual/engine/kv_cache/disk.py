"""Blocks of the prefix cache on disk: one file for each, authenticated, written beside generation, kept over restarts and kills.

A file that is not exactly what this store wrote under that key is a miss, whoever changed it and why; it is removed and counted.
"""

from __future__ import annotations

import errno
import fcntl
import hmac
import os
import re
import secrets
import stat
import struct
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Self

from rorqual.core.errors import ConfigError
from rorqual.engine.kv_cache.block_hash import KEY_BYTES

SUFFIX = ".rqblock"
SECRET_FILE, LOCK_FILE = "secret", "lock"
SECRET_BYTES = 32
VERSION = 1
QUEUE_BYTES = 64 << 20
_OURS = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}{re.escape(SUFFIX)}")
_HEAD = struct.Struct(f"<8sIQ{KEY_BYTES}s")  # magic, version, bytes of the payload, key
_MAC_BYTES = 32
_OVERHEAD = _HEAD.size + _MAC_BYTES
# What a disk gives a file at the least. Nearly all file systems, and `du` counts it so.
_PAGE = 4096
_REMEDY = "Make it writable and free space on its disk, name another folder, or go without a cache on disk."
# A link in the place of a file is not followed, and a pipe there is not waited for.
_PLAIN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def load_secret(folder: Path) -> bytes:
    """The 32 random bytes that authenticate what is cached in `folder`: made at the first start, for the owner's eyes only.

    One of another length, as a lost power leaves it, is made anew, and then every file is a miss. ConfigError: a folder that cannot be
    written, a secret that others can read.
    """
    with _mendable(folder):
        place = _open_folder(folder)
        try:
            return _read_secret(place, folder) or _make_secret(place, folder)
        finally:
            os.close(place)


def _read_secret(place: int, folder: Path) -> bytes | None:
    try:
        file = os.open(SECRET_FILE, os.O_RDONLY | _PLAIN, dir_fd=place)
    except FileNotFoundError:
        return None
    with os.fdopen(file, "rb") as opened:
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
            raise ConfigError(
                "others can read it",
                where=str(folder / SECRET_FILE),
                remedy="`chmod 600` it where you trust them, else remove it: then all that is cached there is void.",
            )
        secret = opened.read(SECRET_BYTES + 1)
    return secret if len(secret) == SECRET_BYTES else None


def _make_secret(place: int, folder: Path) -> bytes:
    """Written whole beside its place; of two that start at once, one wins and both read it."""
    with suppress(FileNotFoundError):
        if os.stat(SECRET_FILE, dir_fd=place, follow_symlinks=False).st_size != SECRET_BYTES:
            os.unlink(SECRET_FILE, dir_fd=place)
    temporary = f"{SECRET_FILE}.{secrets.token_hex(8)}.part{SUFFIX}"
    try:
        _write_new(place, temporary, secrets.token_bytes(SECRET_BYTES), lasting=True)
        # FileNotFoundError: a store that opened meanwhile took it for a leftover; then there is a secret by now.
        with suppress(FileExistsError, FileNotFoundError):
            os.link(temporary, SECRET_FILE, src_dir_fd=place, dst_dir_fd=place, follow_symlinks=False)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=place)
    secret = _read_secret(place, folder)
    if secret is None:
        raise ConfigError("it is not a secret", where=str(folder / SECRET_FILE), remedy="Remove it.")
    return secret


class DiskStore:
    """Payloads by key, at most `budget_bytes` of disk, the least recently used given up first.

    `secret`: of `load_secret`; `fingerprint`: what names the weights, so that files of others are misses. Calls never wait for a write and
    raise nothing because of the disk. ConfigError at the start: a folder that cannot be used, or that another process uses.
    """

    def __init__(
        self, folder: Path, budget_bytes: int, secret: bytes, fingerprint: bytes, *, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        if budget_bytes < 1:
            raise ConfigError(
                f"a cache of {budget_bytes} bytes", where=str(folder), remedy="Give it some, or leave it out."
            )
        if not 16 <= len(secret) <= 64:
            raise ValueError(f"a secret of {len(secret)} bytes; it has 16 to 64")
        self.folder, self.budget, self.queue_bytes = folder, budget_bytes, queue_bytes
        self._mac_key = blake2b(fingerprint, key=secret, digest_size=32, person=b"rorqual store").digest()
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # what is on disk, least recently used first
        self._pending: OrderedDict[bytes, bytes] = OrderedDict()  # what is to be written; the first is being written
        self._pending_bytes = 0
        self._total = 2 * _PAGE  # the secret and the lock
        self._counts = dict.fromkeys(("written", "read", "damaged", "dropped", "evicted"), 0)
        self._last, self._owner = 0, os.getpid()
        self._closing = self._complained = False
        self._changed = threading.Condition()
        with _mendable(folder):
            self._place = _open_folder(folder)
            try:
                self._lock = _own(self._place, folder)
                self._scan()
            except BaseException:
                os.close(self._place)
                raise
        self._writer = threading.Thread(target=self._write_all, name="rorqual cache writer", daemon=True)
        self._writer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> dict[str, int]:
        """Files `written`, `read`, `damaged`, `evicted`, puts `dropped`; `files` and `bytes` on disk now."""
        with self._changed:
            return {**self._counts, "files": len(self._sizes), "bytes": self._total}

    def has(self, key: bytes) -> bool:
        """Whether `get` would look. Changes nothing."""
        with self._changed:
            return not self._closing and (key in self._sizes or key in self._pending)

    def put(self, key: bytes, payload: bytes | memoryview) -> bool:
        """Queues a payload, copied at once, under a key of 32 bytes. False where it is dropped: the queue is full, the budget too small,
        the store closed. What is there already is not written again: equal keys mean equal contents."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes")
        size = _on_disk(memoryview(payload).nbytes + _OVERHEAD)
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
        """The payload that was put under `key`, or None."""
        with self._changed:
            if self._closing or key not in self._sizes:
                return None if self._closing else self._pending.get(key)
            self._sizes.move_to_end(key)
            try:
                # Inside the lock, so that the writer cannot give the file up in between.
                file = os.open(_name(key), os.O_RDONLY | _PLAIN, dir_fd=self._place)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # gone, a link, a socket
                    self._lose(key, damaged=error.errno != errno.ENOENT)
                return None  # or, say, too many open files: not the file's fault
        try:
            payload = self._verified(file, key)
        finally:
            os.close(file)
        with self._changed:
            if payload is not None:
                self._counts["read"] += 1
            elif not self._closing:
                self._lose(key, damaged=True)
        return payload

    def flush(self) -> None:
        """Wait until everything that was put is written or dropped."""
        with self._changed:
            while self._pending and self._writer.is_alive():
                self._changed.wait(0.1)

    def close(self) -> None:
        """Writes what is queued and gives the folder back. Afterwards nothing is found and nothing kept. In a process that was forked from the
        one that opened it, which has neither writer nor right to the folder: nothing."""
        if os.getpid() != self._owner:
            return
        self.flush()
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._writer.join()
        # A process that was forked from this one has the same lock: closing alone would leave it locked.
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        os.close(self._place)

    # The rest is called with the lock held, but for what reads and writes contents.

    def _lose(self, key: bytes, *, damaged: bool) -> None:
        self._counts["damaged"] += damaged
        if key in self._sizes:
            self._total -= self._sizes.pop(key)
            _remove(self._place, _name(key))

    def _evict(self, size: int) -> None:
        while self._sizes and self._total + size > self.budget:
            self._lose(next(iter(self._sizes)), damaged=False)
            self._counts["evicted"] += 1

    def _scan(self) -> None:
        """The index, from the folder: what is ours by name and could be whole, in the order of last use. Whatever else ends in our suffix
        is a leftover; nothing without it is touched."""
        found: list[tuple[int, bytes, int]] = []
        with os.scandir(self._place) as entries:
            for entry in entries:
                if not entry.name.endswith(SUFFIX):
                    continue
                status = entry.stat(follow_symlinks=False)
                size = _on_disk(status.st_size)
                possible = stat.S_ISREG(status.st_mode) and status.st_size >= _OVERHEAD and size <= self.budget
                if possible and _OURS.fullmatch(entry.name):
                    found.append((status.st_mtime_ns, bytes.fromhex(entry.name.removesuffix(SUFFIX)), size))
                else:
                    _remove(self._place, entry.name)
        for _, key, size in sorted(found):
            self._sizes[key] = size
            self._total += size
        self._evict(0)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closing:
                    self._changed.wait()
                if not self._pending:
                    return
                key, payload = next(iter(self._pending.items()))
                size = _on_disk(len(payload) + _OVERHEAD)
                self._evict(size)
            error = self._write(key, payload)
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
            if error is not None and not self._complained:
                self._complained = True
                print(f"{self.folder}: nothing is cached on disk for now: {error.strerror}", file=sys.stderr)

    def _write(self, key: bytes, payload: bytes) -> OSError | None:
        temporary = f"{key.hex()}.{os.getpid()}.part{SUFFIX}"
        head = _head(key, len(payload))
        try:
            # Not synced: a file that a lost power tears is found out by its code, and costs a miss.
            _write_new(self._place, temporary, head, self._code(head, payload), payload, times=self._now())
            os.replace(temporary, _name(key), src_dir_fd=self._place, dst_dir_fd=self._place)
        except OSError as error:
            _remove(self._place, temporary)
            return error
        return None

    def _verified(self, file: int, key: bytes) -> bytes | None:
        """The payload of an open file, if every byte of it is as it was written."""
        try:
            status = os.fstat(file)
            length = status.st_size - _OVERHEAD
            if not stat.S_ISREG(status.st_mode) or not 0 <= length <= self.budget:
                return None
            with os.fdopen(file, "rb", closefd=False) as opened:
                head, code = opened.read(_HEAD.size), opened.read(_MAC_BYTES)
                payload = opened.read(length)
            # The one header there can be, byte by byte: nothing in the file is believed before its code is checked.
            if head != _head(key, length) or not hmac.compare_digest(code, self._code(head, payload)):
                return None
            with suppress(OSError):  # a disk mounted read-only meanwhile still serves
                os.utime(file, ns=self._now())
        except OSError:
            return None
        return payload

    def _code(self, head: bytes, payload: bytes) -> bytes:
        code = blake2b(head, key=self._mac_key, digest_size=_MAC_BYTES)
        code.update(payload)
        return code.digest()

    def _now(self) -> tuple[int, int]:
        """Access and modification time, rising: the order of last use that the next start finds."""
        with self._changed:
            self._last = max(self._last + 1, time.time_ns())
            return self._last, self._last


def _name(key: bytes) -> str:
    return key.hex() + SUFFIX


def _head(key: bytes, length: int) -> bytes:
    return _HEAD.pack(b"rorqualB", VERSION, length, key)


def _on_disk(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _remove(place: int, name: str) -> None:
    # A folder in a file's place stays: it is not ours, and what is in it even less.
    with suppress(OSError):
        os.unlink(name, dir_fd=place)


def _write_new(
    place: int, name: str, *parts: bytes, times: tuple[int, int] | None = None, lasting: bool = False
) -> None:
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN, 0o600, dir_fd=place)
    with os.fdopen(file, "wb") as opened:
        for part in parts:
            opened.write(part)
        opened.flush()
        if lasting:
            os.fsync(file)
        if times is not None:
            os.utime(file, ns=times)


@contextmanager
def _mendable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"nothing can be cached there: {error.strerror}", where=str(folder), remedy=_REMEDY
        ) from error


def _open_folder(folder: Path) -> int:
    """A handle on the folder, by which everything in it is reached, whatever becomes of its path."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if os.fstat(place).st_mode & 0o022:
        os.close(place)
        raise ConfigError("others can write to it", where=str(folder), remedy="`chmod 700` it, or name another folder.")
    return place


def _own(place: int, folder: Path) -> int:
    """The lock on the folder. It is the kernel's: whoever held it and died has lost it."""
    lock = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT | _PLAIN, 0o600, dir_fd=place)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(lock, 100).decode("utf-8", "replace").strip() or "another process"
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise ConfigError(
            f"{owner} caches there", where=str(folder), remedy="Stop it, or give each engine a folder of its own."
        ) from None
    try:
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
    except BaseException:
        os.close(lock)
        raise
    return lock
