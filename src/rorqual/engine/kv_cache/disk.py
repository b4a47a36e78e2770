"""The on-disk prefix cache: one authenticated file per block, written by a background thread. Blocks survive restarts
and killed processes.

A read of a damaged or changed file is a cache miss. The store removes and counts such files.
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
_BLOCK_FILE = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}{re.escape(SUFFIX)}")
_HEAD = struct.Struct(f"<8sIQ{KEY_BYTES}s")  # magic, version, payload length in bytes, key
_MAC_BYTES = 32
_OVERHEAD = _HEAD.size + _MAC_BYTES
# Block size of nearly all file systems. File sizes are rounded up to whole blocks, as `du` does.
_PAGE = 4096
_REMEDY = "Make the folder writable and free disk space, choose another folder, or leave out cache_dir."
# Never follow a symbolic link, and never block on a named pipe.
_PLAIN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def load_secret(folder: Path) -> bytes:
    """Return the 32-byte secret that authenticates the files in `folder`. The first call creates the secret, readable
    by the owner only.

    If the stored secret does not have 32 bytes, for example after a power failure, a new secret replaces it. A new
    secret turns all existing files into cache misses. Raises ConfigError if the folder cannot be written or other users
    can read the secret.
    """
    with _as_config_error(folder):
        folder_fd = _open_folder(folder)
        try:
            return _read_secret(folder_fd, folder) or _make_secret(folder_fd, folder)
        finally:
            os.close(folder_fd)


def _read_secret(folder_fd: int, folder: Path) -> bytes | None:
    try:
        file = os.open(SECRET_FILE, os.O_RDONLY | _PLAIN, dir_fd=folder_fd)
    except FileNotFoundError:
        return None
    with os.fdopen(file, "rb") as opened:
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
            raise ConfigError(
                "other users can read this secret",
                where=str(folder / SECRET_FILE),
                remedy="If you trust these users, run `chmod 600` on the file. Otherwise remove the file, which "
                "invalidates the disk cache.",
            )
        secret = opened.read(SECRET_BYTES + 1)
    return secret if len(secret) == SECRET_BYTES else None


def _make_secret(folder_fd: int, folder: Path) -> bytes:
    """Write a new secret to a temporary file, link it into place and return it. If two processes start at the same
    time, both read the secret that was linked first."""
    with suppress(FileNotFoundError):
        if os.stat(SECRET_FILE, dir_fd=folder_fd, follow_symlinks=False).st_size != SECRET_BYTES:
            os.unlink(SECRET_FILE, dir_fd=folder_fd)
    temporary = f"{SECRET_FILE}.{secrets.token_hex(8)}.part{SUFFIX}"
    try:
        _write_new(folder_fd, temporary, secrets.token_bytes(SECRET_BYTES), lasting=True)
        # FileNotFoundError: another process has removed our temporary file as a leftover. The other process had opened
        # a store, so a secret already exists.
        with suppress(FileExistsError, FileNotFoundError):
            os.link(temporary, SECRET_FILE, src_dir_fd=folder_fd, dst_dir_fd=folder_fd, follow_symlinks=False)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder_fd)
    secret = _read_secret(folder_fd, folder)
    if secret is None:
        raise ConfigError(
            "this file does not contain a valid secret", where=str(folder / SECRET_FILE), remedy="Remove the file."
        )
    return secret


class DiskStore:
    """An LRU key-value store of payloads in a folder, limited to `budget_bytes` of disk.

    `secret` comes from `load_secret`. `fingerprint` identifies the weights: files that were written with other weights
    are cache misses. `put` never waits for a write, and disk errors are not raised. The constructor raises ConfigError
    if the folder is unusable or in use by another process.
    """

    def __init__(
        self, folder: Path, budget_bytes: int, secret: bytes, fingerprint: bytes, *, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        if budget_bytes < 1:
            raise ConfigError(
                f"the disk cache has a budget of {budget_bytes} bytes",
                where=str(folder),
                remedy="Set disk_bytes to 1 or more, or leave out cache_dir.",
            )
        if not 16 <= len(secret) <= 64:
            raise ValueError(f"the secret has {len(secret)} bytes; it must have 16 to 64")
        self.folder, self.budget, self.queue_bytes = folder, budget_bytes, queue_bytes
        self._mac_key = blake2b(fingerprint, key=secret, digest_size=32, person=b"rorqual store").digest()
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # sizes of files on disk, least recently used first
        # Payloads to write. The writer thread may be writing the first pending payload.
        self._pending: OrderedDict[bytes, bytes] = OrderedDict()
        self._pending_bytes = 0
        self._total = 2 * _PAGE  # disk space of the secret file and the lock file
        self._counts = dict.fromkeys(("written", "read", "damaged", "dropped", "evicted"), 0)
        self._last, self._owner = 0, os.getpid()
        self._closing = self._error_reported = False
        self._changed = threading.Condition()
        with _as_config_error(folder):
            self._folder_fd = _open_folder(folder)
            try:
                self._lock = _lock_folder(self._folder_fd, folder)
                self._scan()
            except BaseException:
                os.close(self._folder_fd)
                raise
        self._writer = threading.Thread(target=self._write_all, name="rorqual cache writer", daemon=True)
        self._writer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> dict[str, int]:
        """Return counters by name.

        `written`, `read`, `damaged` and `evicted` count files, and `dropped` counts payloads. `files` and `bytes` are the
        number and the total size of the files on disk.
        """
        with self._changed:
            return {**self._counts, "files": len(self._sizes), "bytes": self._total}

    def has(self, key: bytes) -> bool:
        """Return whether a payload is stored or queued under `key`. The lookup does not change the LRU order."""
        with self._changed:
            return not self._closing and (key in self._sizes or key in self._pending)

    def put(self, key: bytes, payload: bytes | memoryview) -> bool:
        """Queue a copy of a payload for writing under a 32-byte key, unless the key is already stored.

        Returns False if the payload is dropped because the queue is full, the budget is too small or the store is
        closed.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key has {len(key)} bytes; it must have {KEY_BYTES}")
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
        """Return the payload of `key`. Return None if no payload is stored, or if the file is damaged."""
        with self._changed:
            if self._closing or key not in self._sizes:
                return None if self._closing else self._pending.get(key)
            self._sizes.move_to_end(key)
            try:
                # Open the file while holding the lock, so that the writer cannot evict the file first.
                file = os.open(_name(key), os.O_RDONLY | _PLAIN, dir_fd=self._folder_fd)
            except OSError as error:
                # The file is missing, a symbolic link or a socket.
                if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                    self._remove_entry(key, damaged=error.errno != errno.ENOENT)
                return None  # an error such as too many open files does not mean that the file is damaged
        try:
            payload = self._verified(file, key)
        finally:
            os.close(file)
        with self._changed:
            if payload is not None:
                self._counts["read"] += 1
            elif not self._closing:
                self._remove_entry(key, damaged=True)
        return payload

    def flush(self) -> None:
        """Wait until all queued payloads are written or dropped."""
        with self._changed:
            while self._pending and self._writer.is_alive():
                self._changed.wait(0.1)

    def close(self) -> None:
        """Write the queued payloads and unlock the folder. After `close`, every `get` is a cache miss and every `put`
        is dropped.

        In a forked child of the process that opened the store, `close` does nothing, because the child has no writer
        thread and does not own the folder.
        """
        if os.getpid() != self._owner:
            return
        self.flush()
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._writer.join()
        # Unlock explicitly: closing the file does not release the lock while a forked process shares it.
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        os.close(self._folder_fd)

    # Callers of `_remove_entry` and `_evict` hold the lock, except in the constructor. `_write` and `_verified` do I/O
    # without holding the lock.

    def _remove_entry(self, key: bytes, *, damaged: bool) -> None:
        self._counts["damaged"] += damaged
        if key in self._sizes:
            self._total -= self._sizes.pop(key)
            _remove(self._folder_fd, _name(key))

    def _evict(self, size: int) -> None:
        while self._sizes and self._total + size > self.budget:
            self._remove_entry(next(iter(self._sizes)), damaged=False)
            self._counts["evicted"] += 1

    def _scan(self) -> None:
        """Build the index from the files in the folder, least recently used first.

        A regular file is indexed if its name and size can be those of a block. Any other file with the suffix `SUFFIX`
        is a leftover and is removed. Files without the suffix are not touched.
        """
        blocks: list[tuple[int, bytes, int]] = []
        with os.scandir(self._folder_fd) as entries:
            for entry in entries:
                if not entry.name.endswith(SUFFIX):
                    continue
                status = entry.stat(follow_symlinks=False)
                size = _on_disk(status.st_size)
                possible = stat.S_ISREG(status.st_mode) and status.st_size >= _OVERHEAD and size <= self.budget
                if possible and _BLOCK_FILE.fullmatch(entry.name):
                    blocks.append((status.st_mtime_ns, bytes.fromhex(entry.name.removesuffix(SUFFIX)), size))
                else:
                    _remove(self._folder_fd, entry.name)
        for _, key, size in sorted(blocks):
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
            if error is not None and not self._error_reported:
                self._error_reported = True
                print(f"{self.folder}: cannot write to the disk cache: {error.strerror}", file=sys.stderr)

    def _write(self, key: bytes, payload: bytes) -> OSError | None:
        temporary = f"{key.hex()}.{os.getpid()}.part{SUFFIX}"
        head = _head(key, len(payload))
        try:
            # No fsync: a file that a power failure left incomplete has a wrong authentication code and so is a cache
            # miss.
            _write_new(self._folder_fd, temporary, head, self._code(head, payload), payload, times=self._now())
            os.replace(temporary, _name(key), src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
        except OSError as error:
            _remove(self._folder_fd, temporary)
            return error
        return None

    def _verified(self, file: int, key: bytes) -> bytes | None:
        """Return the payload of an open file, or None if the file is damaged or was changed."""
        try:
            status = os.fstat(file)
            length = status.st_size - _OVERHEAD
            if not stat.S_ISREG(status.st_mode) or not 0 <= length <= self.budget:
                return None
            with os.fdopen(file, "rb", closefd=False) as opened:
                head, code = opened.read(_HEAD.size), opened.read(_MAC_BYTES)
                payload = opened.read(length)
            # The header must equal the expected header for this key and length. No field of the file is used before the
            # authentication code is checked.
            if head != _head(key, length) or not hmac.compare_digest(code, self._code(head, payload)):
                return None
            with suppress(OSError):  # keep serving if the disk was remounted read-only
                os.utime(file, ns=self._now())
        except OSError:
            return None
        return payload

    def _code(self, head: bytes, payload: bytes) -> bytes:
        code = blake2b(head, key=self._mac_key, digest_size=_MAC_BYTES)
        code.update(payload)
        return code.digest()

    def _now(self) -> tuple[int, int]:
        """Return new access and modification times for a file, in ns.

        The times increase strictly, because after a restart the LRU order is read from the file times.
        """
        with self._changed:
            self._last = max(self._last + 1, time.time_ns())
            return self._last, self._last


def _name(key: bytes) -> str:
    return key.hex() + SUFFIX


def _head(key: bytes, length: int) -> bytes:
    return _HEAD.pack(b"rorqualB", VERSION, length, key)


def _on_disk(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _remove(folder_fd: int, name: str) -> None:
    # unlink fails on a directory. The directory stays, because the store did not create it.
    with suppress(OSError):
        os.unlink(name, dir_fd=folder_fd)


def _write_new(
    folder_fd: int, name: str, *parts: bytes, times: tuple[int, int] | None = None, lasting: bool = False
) -> None:
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN, 0o600, dir_fd=folder_fd)
    with os.fdopen(file, "wb") as opened:
        for part in parts:
            opened.write(part)
        opened.flush()
        if lasting:
            os.fsync(file)
        if times is not None:
            os.utime(file, ns=times)


@contextmanager
def _as_config_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot use this folder for the disk cache: {error.strerror}", where=str(folder), remedy=_REMEDY
        ) from error


def _open_folder(folder: Path) -> int:
    """Open the folder and return its file descriptor. All files are opened relative to this descriptor, so the folder
    may be renamed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if os.fstat(folder_fd).st_mode & 0o022:
        os.close(folder_fd)
        raise ConfigError(
            "other users can write to this folder",
            where=str(folder),
            remedy="Run `chmod 700` on the folder, or choose another folder.",
        )
    return folder_fd


def _lock_folder(folder_fd: int, folder: Path) -> int:
    """Lock the folder and return the file descriptor of the lock. If the process dies, the kernel releases the lock."""
    lock = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT | _PLAIN, 0o600, dir_fd=folder_fd)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(lock, 100).decode("utf-8", "replace").strip() or "another process"
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise ConfigError(
            f"{owner} uses this folder for its disk cache",
            where=str(folder),
            remedy="Stop that process, or give each engine its own folder.",
        ) from None
    try:
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
    except BaseException:
        os.close(lock)
        raise
    return lock
