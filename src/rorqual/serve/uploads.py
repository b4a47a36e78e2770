"""Weight updates from a trainer. Each request body is streamed to a file, verified by its digest, and loaded into the engine."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastapi import Request

from rorqual.core.errors import ConfigError
from rorqual.core.lock import Lock, acquire_lock
from rorqual.serve.bodies import BODY_SECONDS, DISCARDED
from rorqual.serve.bridge import EngineBridge
from rorqual.serve.errors import ApiError
from rorqual.serve.keys import ApiKeys

CHUNK = 1 << 20
"""Number of bytes of a request body that are buffered before a thread writes the buffer to the file."""
KEYS, OWNER = "rollout-key.json", "rollout"
"""Name of the rollout key's file, and the tenant name under which the key is stored."""


@dataclass
class WeightUploads:
    """Weights received from a trainer. `folder` contains the latest weight file, which the engine loads again after a restart.

    `version` and `digest` (SHA-256) describe the weights that the engine uses. For the run's original weights, `version` is 0
    and `digest` is empty.
    """

    folder: Path
    keys: ApiKeys
    lock: Lock
    version: int = 0
    digest: bytes = b""
    busy: bool = False

    @classmethod
    def open_folder(cls, folder: Path) -> tuple[WeightUploads, str | None]:
        """Lock `folder`, delete weights of an earlier server, and create a rollout key if the folder has none.

        Return (uploads, new key). The new key is None if the folder already has a key.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = acquire_lock(folder, "Give each server its own rollout_dir.")
            for old in folder.glob("weights-*"):
                old.unlink()
        except OSError as error:
            raise ConfigError(
                f"cannot store weights here: {error.strerror}",
                where=f"rollout_dir={folder}",
                remedy="Give a folder that you may write to.",
            ) from None
        keys = ApiKeys.load(folder / KEYS)
        key = keys.ensure_key(OWNER)
        return cls(folder, keys, lock), key

    def close(self) -> None:
        """Delete the stored weights and unlock the folder."""
        for file in self.folder.glob("weights-*"):
            file.unlink(missing_ok=True)
        self.lock.close()

    async def load_from_request(self, request: Request, bridge: EngineBridge) -> None:
        """Load the weights in a request body into the engine.

        Raises ApiError if the body is invalid; the engine then keeps its weights. The whole body is read before an error is
        raised, because a client reads an error only after it has sent the body. A trainer may repeat an update with the same
        version and weights, for example after a lost response.
        """
        file, old = self.folder / f"weights-{secrets.token_hex(8)}.safetensors", bridge.weights
        stale: Path | None = file
        try:
            sha256 = await self._save_body(request, file, bridge.info.weights_bytes)
            version = self._checked_version(request, sha256)
            if version == self.version:  # a retry after a lost response
                return
            self.busy = True
            try:
                await bridge.update_weights(file, version)
            finally:
                self.busy = False
            self.version, self.digest, stale = version, sha256, old and old[0]
        finally:
            if stale is not None:
                stale.unlink(missing_ok=True)

    def _checked_version(self, request: Request, sha256: bytes) -> int:
        """Return the weight version of an upload. Raises ApiError if the upload must not become the engine's weights."""
        if self.busy:
            raise ApiError(409, "Another update is running. Try again later.", code="update_under_way")
        text = request.query_params.get("version", "")
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise ApiError(400, "`version` must be a positive integer in the query: ?version=8", param="version")
        if request.headers.get("content-digest") != f"sha-256=:{base64.b64encode(sha256).decode()}:":
            problem = "The body's SHA-256 is not the header content-digest, sha-256=:BASE64: (RFC 9530)"
            raise ApiError(422, f"{problem}. Send the whole body again.", param="content-digest", code="wrong_digest")
        if (version := int(text)) < self.version or (version == self.version and sha256 != self.digest):
            problem = f"Version {version} is not newer than the engine's version {self.version}"
            raise ApiError(412, f"{problem}. Send a newer version, or read /rollout/weights first.", code="old_version")
        return version

    async def _save_body(self, request: Request, file: Path, limit: int) -> bytes:
        """Write the request body to `file` and return its SHA-256. While the server writes to disk, the server reads nothing
        from the client, so only about `CHUNK` bytes are buffered."""
        loop, sha256, size, buffer = asyncio.get_running_loop(), hashlib.sha256(), 0, bytearray()
        try:
            with file.open("wb") as out:
                async with asyncio.timeout(BODY_SECONDS) as clock:
                    async for part in request.stream():
                        # The time limit applies to each part, because a whole body may take longer.
                        clock.reschedule(loop.time() + BODY_SECONDS)
                        size += len(part)
                        if size > limit + DISCARDED:
                            break
                        buffer += part if size <= limit else b""
                        if len(buffer) >= CHUNK:
                            await asyncio.to_thread(_write_and_hash, out, sha256, bytes(buffer))
                            buffer.clear()
                await asyncio.to_thread(_write_and_hash, out, sha256, bytes(buffer))
        except TimeoutError:
            raise ApiError(408, f"No further part of the body arrived within {BODY_SECONDS:.0f} seconds.") from None
        except OSError as error:
            problem = f"The weights cannot be written: {error.strerror}"
            raise ApiError(507, f"{problem}. Free space in the server's rollout_dir.", code="no_space") from None
        if size > limit:
            raise _too_long(size, limit)
        return sha256.digest()


def _write_and_hash(out: BinaryIO, sha256: hashlib._Hash, data: bytes) -> None:
    out.write(data)
    sha256.update(data)


def _too_long(size: int, limit: int) -> ApiError:
    problem = f"The body has {size:,} bytes, but this model's weights have at most {limit:,}"
    return ApiError(413, f"{problem}. Send the weights of the run that is served.", code="body_too_large")
