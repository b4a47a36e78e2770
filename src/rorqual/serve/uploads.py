"""Weight updates from a trainer: each body is streamed to a file, verified by its digest, and loaded into the engine."""

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
from rorqual.serve.exchange import Gone
from rorqual.serve.keys import Keys

CHUNK = 1 << 20
"""Bytes per write to the file, in a thread."""
KEYS, OWNER = "rollout-key.json", "rollout"
"""The file of the rollout key, and its tenant name there."""
DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
T = TypeVar("T")


@dataclass
class WeightUploads:
    """The weights that trainers sent. `folder` keeps the newest file, which a restarted engine loads.

    `version` and `digest` (SHA-256) are those of the engine's weights; 0 and empty for the run's own.
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
        """Lock `folder`, remove weights of an earlier server, and create a rollout key if there is none.

        Return the new key, if any, so that it can be shown.
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
        if others := {*keys.tenants.values()} - {OWNER}:
            raise ConfigError(
                f"the file contains keys of tenants ({', '.join(sorted(others))}), which must not send weights",
                where=str(keys.file),
                remedy="Use another file for keys= or another folder for rollout_dir=.",
            )
        return cls(folder, keys, lock), key

    def close(self) -> None:
        """Remove the weights and release the folder."""
        self.thread.shutdown(wait=True, cancel_futures=True)
        for file in self.folder.glob("weights-*"):
            file.unlink(missing_ok=True)
        self.lock.close()

    async def take(self, request: Request, bridge: Bridge) -> int:
        """Load the weights in a request's body into the engine. Return their version.

        Raises ApiError before the engine's weights change if the body is invalid. Sending the same weights and version
        again is allowed.
        """
        if self.busy:
            await _read_away(request, bridge)
            raise ApiError(409, "Another update is running. Try again later.", code="update_under_way")
        self.busy = True
        try:
            return await self._take(request, bridge)
        finally:
            self.busy = False

    async def _take(self, request: Request, bridge: Bridge) -> int:
        try:
            info = bridge.info
            if info is None:
                raise ApiError(503, "The engine is still loading. Try again in a moment.", code="loading")
            version, digest = _version_of(request), _digest_of(request)
            if version < self.version or (version == self.version and digest != self.digest):
                what = f"Version {version} is not newer than the engine's version {self.version}"
                raise ApiError(412, f"{what}. Send a newer one, or read /rollout/weights first.", code="old_version")
            if (promised := int(request.headers.get("content-length", 0))) > info.weights_bytes:
                raise _too_long(promised, info.weights_bytes)
        except ApiError as error:
            await _read_away(request, bridge)
            raise error from None
        file = self.folder / f"weights-{version}.part"
        try:
            if await self._stream(request, file, info.weights_bytes) != digest:
                what = "The body's SHA-256 differs from its content-digest: it was truncated or changed in transit"
                raise ApiError(422, f"{what}. Send it again.", code="wrong_digest")
            if version == self.version:  # a retry: the response was lost
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
        """Write the body to `file`. Return its SHA-256. The socket is read no faster than the disk writes."""
        loop, hashed, size, held = asyncio.get_running_loop(), hashlib.sha256(), 0, bytearray()
        try:
            with await self._beside(lambda: file.open("wb")) as out:
                async with asyncio.timeout(BODY_SECONDS) as clock:
                    async for part in request.stream():
                        clock.reschedule(
                            loop.time() + BODY_SECONDS
                        )  # the limit is per part: a whole body may take long
                        size += len(part)
                        if size > limit + DISCARDED:
                            break
                        held += part if size <= limit else b""
                        if len(held) >= CHUNK:
                            await self._beside(partial(_write, out, hashed, bytes(held)))
                            held.clear()
                await self._beside(partial(_write, out, hashed, bytes(held)))
        except ClientDisconnect:
            raise Gone from None
        except TimeoutError:
            raise ApiError(408, f"No further part of the body arrived within {BODY_SECONDS:.0f} seconds.") from None
        except OSError as error:
            what = f"The weights cannot be written: {error.strerror}"
            raise ApiError(507, f"{what}. Free space in the server's rollout_dir.", code="no_space") from None
        if size > limit:
            raise _too_long(size, limit)
        return hashed.digest()

    async def _beside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)


def _write(out: BinaryIO, hashed: hashlib._Hash, data: bytes) -> None:
    out.write(data)
    hashed.update(data)


async def _read_away(request: Request, bridge: Bridge) -> None:
    """Read and drop a refused body, up to a limit, so that the client finishes sending and reads the error."""
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
    given = request.query_params.get("version", "")
    if not given.isascii() or not given.isdigit() or not 1 <= len(given) <= 18:
        raise ApiError(400, "`version` must be a positive integer in the query: ?version=8", param="version")
    return int(given)


def _digest_of(request: Request) -> bytes:
    found = DIGEST.fullmatch(request.headers.get("content-digest", ""))
    try:
        if found:
            return base64.b64decode(found[1], validate=True)
    except binascii.Error:
        pass
    what = "`content-digest` must be the body's SHA-256 in the format of RFC 9530: sha-256=:BASE64:"
    raise ApiError(400, what, param="content-digest")


def _too_long(size: int, limit: int) -> ApiError:
    what = f"The body has {size:,} bytes, but this model's weights have at most {limit:,}"
    return ApiError(413, f"{what}. Send the weights of the run that is served.", code="body_too_large")
