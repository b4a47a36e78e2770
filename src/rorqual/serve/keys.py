"""API keys. Each key belongs to a tenant. A new key is shown once, and only its hash is stored."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rorqual.core.errors import ConfigError
from rorqual.core.records import write_atomic

PREFIX = "rq-"
NAME_LENGTH = 64
SHA256 = re.compile("[0-9a-f]{64}")


def default_file() -> Path:
    """Return the default key file, `rorqual/keys.json` in the user's configuration folder."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rorqual" / "keys.json"


def _hash(key: str) -> str:
    # A key has 256 random bits and cannot be guessed, so a slow hash would add no protection.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _tenants(data: Any) -> dict[str, str]:
    """Return the tenant of each key hash in a parsed key file. Raises ValueError if the file's structure is wrong."""
    rows = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise ValueError("the list 'keys' is missing")
    tenants: dict[str, str] = {}
    for number, row in enumerate(rows):
        digest, tenant = (row.get("sha256"), row.get("tenant")) if isinstance(row, dict) else (None, None)
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise ValueError(f"keys[{number}].sha256 is not 64 lower-case hexadecimal digits")
        if not isinstance(tenant, str) or not tenant.isidentifier() or len(tenant) > NAME_LENGTH:
            raise ValueError(f"keys[{number}].tenant is not a name of letters, digits and _")
        if tenants.setdefault(digest, tenant) != tenant:
            raise ValueError(f"keys[{number}] repeats the key of another tenant")
    return tenants


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Lock the key file for writing. The lock is a separate file, because each write replaces the key file."""
    lock = file.with_name(f".{file.name}.lock")
    with ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(lock.open("wb")), fcntl.LOCK_EX)
        except OSError as error:
            raise ConfigError(
                f"cannot write: {error.strerror}",
                where=str(lock),
                remedy="Give keys=FILE in a folder that you may write to.",
            ) from None
        yield


@dataclass
class Keys:
    """The hashes of API keys, each with its tenant.

    The keys themselves are not stored, so a lost key cannot be recovered. To replace a lost key, create
    a key under a new tenant name.
    """

    file: Path
    tenants: dict[str, str]

    @classmethod
    def load(cls, file: Path) -> Keys:
        """Load a key file. A missing file means that there are no keys. Raises ConfigError if the file is invalid."""
        try:
            return cls(file, _tenants(json.loads(file.read_text(encoding="utf-8"))))
        except FileNotFoundError:
            return cls(file, {})
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"not a valid key file: {error}",
                where=str(file),
                remedy="Restore or remove the file. "
                "After removal, the next start creates a new key, and old keys become invalid.",
            ) from None

    def ensure(self, tenant: str) -> str | None:
        """Create a key for `tenant`, add its hash to the file, and return the key. If the tenant has a key, return None.

        The file is first read again, because another process may have added keys.
        """
        if not tenant.isidentifier() or len(tenant) > NAME_LENGTH:
            raise ConfigError(
                f"'{tenant[:NAME_LENGTH]}' is not a valid tenant name",
                where="tenant",
                remedy=f"Use at most {NAME_LENGTH} letters, digits and _, starting with a letter or _.",
            )
        if tenant in self.tenants.values():
            return None
        with _locked(self.file):
            self.tenants = self.load(self.file).tenants
            if tenant in self.tenants.values():
                return None
            key = PREFIX + secrets.token_urlsafe(32)
            self.tenants[_hash(key)] = tenant
            rows = [{"tenant": name, "sha256": digest} for digest, name in self.tenants.items()]
            write_atomic(self.file, (json.dumps({"keys": rows}, indent=1) + "\n").encode())
            self.file.chmod(0o600)
        return key

    def tenant(self, key: str) -> str | None:
        """Return the tenant of a key, or None if the key is unknown. The lookup compares the key's hash with every
        stored hash, to take constant time."""
        key_hash, tenant = _hash(key), None
        for digest, name in self.tenants.items():
            if hmac.compare_digest(digest, key_hash):
                tenant = name
        return tenant
