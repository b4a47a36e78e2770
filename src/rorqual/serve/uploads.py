"""Weight updates from a trainer. Each request body is streamed to a file, verified by its digest, and loaded into the engine."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from rorqual.core.errors import ConfigError
from rorqual.core.lock import Lock, own
from rorqual.serve.bodies import BODY_SECONDS, DISCARDED
from rorqual.serve.bridge import Bridge
from rorqual.serve.errors import ApiError
from rorqual.serve.exchange import ClientDisconnected
from rorqual.serve.keys import Keys
from rorqual.serve.wire import Ready

CHUNK = 1 << 20
"""Bytes of a body that are buffered before a thread writes them to the file."""
KEYS, OWNER = "rollout-key.json", "rollout"
"""Name of the rollout key's file, and the tenant name under which the key is stored."""
DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
T = TypeVar("T")


@dataclass
class WeightUploads:
    """Weights received from a trainer. `folder` stores the latest file, which the engine loads again after a restart.

    `version` and `digest` (SHA-256) describe the weights that the engine uses. For the run's original weights, `version` is 0
    and `digest` is empty.
    """

    folder: Path
    keys: Keys
    lock: Lock
    version: int = 0
    digest: bytes = b""
    busy: bool = False
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="weights"))

    @classmethod
    def begin(cls, folder: Path) -> tuple[WeightUploads, str | None]:
        """Lock `folder`, delete weights of an earlier server, and create a rollout key if the folder has none.

        Return (uploads, new key). The new key is None if the folder already has a key.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = own(folder, "Give each server its own rollout_dir.")
            for old in folder.glob("weights-*"):
                old.unlink()
        except OSError as error:
            raise ConfigError(
                f"cannot store weights here: {error.strerror}",
                where=f"rollout_dir={folder}",
                remedy="Give a folder that you may write to.",
            ) from None
        keys = Keys.load(folder / KEYS)
        key = keys.ensure(OWNER)
        if other_tenants := {*keys.tenants.values()} - {OWNER}:
            raise ConfigError(
                f"the file contains keys of tenants that must not send weights: {', '.join(sorted(other_tenants))}",
                where=str(keys.file),
                remedy="Use another file for keys= or another folder for rollout_dir=.",
            )
        return cls(folder, keys, lock), key

    def close(self) -> None:
        """Delete the stored weights and unlock the folder."""
        self.thread.shutdown(wait=True, cancel_futures=True)
        for file in self.folder.glob("weights-*"):
            file.unlink(missing_ok=True)
        self.lock.close()

    async def take(self, request: Request, bridge: Bridge) -> int:
        """Load the weights in a request body into the engine. Return the version of the weights.

        If the body is invalid, raises ApiError, and the engine keeps its weights. A trainer may repeat an update with the
        same version and weights, for example after a lost response.
        """
        try:
            info, version, digest = self._checked(request, bridge)
        except ApiError:
            await _discard_body(request, bridge)
            raise
        self.busy = True
        try:
            return await self._take(request, bridge, version, digest, info.weights_bytes)
        finally:
            self.busy = False

    def _checked(self, request: Request, bridge: Bridge) -> tuple[Ready, int, bytes]:
        """Return the engine's limits, and the version and digest of an upload. Raises ApiError if no upload may begin."""
        info = bridge.info
        if self.busy:
            raise ApiError(409, "Another update is running. Try again later.", code="update_under_way")
        if info is None:
            raise ApiError(503, "The engine is still loading. Try again in a moment.", code="loading")
        version, digest = _version_of(request), _digest_of(request)
        if version < self.version or (version == self.version and digest != self.digest):
            problem = f"Version {version} is not newer than the engine's version {self.version}"
            raise ApiError(412, f"{problem}. Send a newer version, or read /rollout/weights first.", code="old_version")
        if (content_length := int(request.headers.get("content-length", 0))) > info.weights_bytes:
            raise _too_long(content_length, info.weights_bytes)
        return info, version, digest

    async def _take(self, request: Request, bridge: Bridge, version: int, digest: bytes, most: int) -> int:
        file = self.folder / f"weights-{version}.part"
        try:
            if await self._stream(request, file, most) != digest:
                problem = "The body's SHA-256 differs from its content-digest: it was truncated or changed in transit"
                raise ApiError(422, f"{problem}. Send the body again.", code="wrong_digest")
            if version == self.version:  # a retry after a lost response
                return version
            final = file.with_suffix(".safetensors")
            file.replace(final)
            old = bridge.weights
            try:
                await bridge.update(final, version)
            except BaseException:
                final.unlink(missing_ok=True)
                raise
            self.version, self.digest = version, digest
            if old is not None:
                old[0].unlink(missing_ok=True)
            return version
        finally:
            file.unlink(missing_ok=True)

    async def _stream(self, request: Request, file: Path, limit: int) -> bytes:
        """Write the request body to `file` and return its SHA-256. The server reads no further parts while it writes to
        disk, so only about `CHUNK` bytes are buffered."""
        loop, sha256, size, buffer = asyncio.get_running_loop(), hashlib.sha256(), 0, bytearray()
        try:
            with await self._in_thread(lambda: file.open("wb")) as out:
                async with asyncio.timeout(BODY_SECONDS) as clock:
                    async for part in request.stream():
                        # The time limit applies to each part, because a whole body may take longer.
                        clock.reschedule(loop.time() + BODY_SECONDS)
                        size += len(part)
                        if size > limit + DISCARDED:
                            break
                        buffer += part if size <= limit else b""
                        if len(buffer) >= CHUNK:
                            await self._in_thread(partial(_write, out, sha256, bytes(buffer)))
                            buffer.clear()
                await self._in_thread(partial(_write, out, sha256, bytes(buffer)))
        except ClientDisconnect:
            raise ClientDisconnected from None
        except TimeoutError:
            raise ApiError(408, f"No further part of the body arrived within {BODY_SECONDS:.0f} seconds.") from None
        except OSError as error:
            problem = f"The weights cannot be written: {error.strerror}"
            raise ApiError(507, f"{problem}. Free space in the server's rollout_dir.", code="no_space") from None
        if size > limit:
            raise _too_long(size, limit)
        return sha256.digest()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)


def _write(out: BinaryIO, sha256: hashlib._Hash, data: bytes) -> None:
    out.write(data)
    sha256.update(data)


async def _discard_body(request: Request, bridge: Bridge) -> None:
    """Read and discard a refused body (up to a limit). The client then finishes sending and reads the error."""
    size, most = 0, DISCARDED + (bridge.info.weights_bytes if bridge.info else 0)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    return
    except (ClientDisconnect, TimeoutError):
        return


def _version_of(request: Request) -> int:
    version = request.query_params.get("version", "")
    if not version.isascii() or not version.isdigit() or not 1 <= len(version) <= 18:
        raise ApiError(400, "`version` must be a positive integer in the query: ?version=8", param="version")
    return int(version)


def _digest_of(request: Request) -> bytes:
    match = DIGEST.fullmatch(request.headers.get("content-digest", ""))
    try:
        if match:
            return base64.b64decode(match[1], validate=True)
    except binascii.Error:
        pass
    problem = "`content-digest` must be the body's SHA-256 in the format of RFC 9530: sha-256=:BASE64:"
    raise ApiError(400, problem, param="content-digest")


def _too_long(size: int, limit: int) -> ApiError:
    problem = f"The body has {size:,} bytes, but this model's weights have at most {limit:,}"
    return ApiError(413, f"{problem}. Send the weights of the run that is served.", code="body_too_large")
