"""Keys: made at the first start, shown once, kept as hashes; each belongs to a tenant."""

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
    """`rorqual/keys.json` in the user's configuration folder."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rorqual" / "keys.json"


def _hash(key: str) -> str:
    # A key holds 256 random bits: there is nothing to guess, so nothing that a slow hash would protect.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _tenants(found: Any) -> dict[str, str]:
    """Of what a file holds, the tenant of each hash; a `ValueError` names what is of another shape."""
    rows = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(rows, list):
        raise ValueError("it has no list 'keys'")
    tenants: dict[str, str] = {}
    for number, row in enumerate(rows):
        digest, tenant = (row.get("sha256"), row.get("tenant")) if isinstance(row, dict) else (None, None)
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise ValueError(f"keys[{number}].sha256 is not 64 hexadecimal digits, in lower case")
        if not isinstance(tenant, str) or not tenant.isidentifier() or len(tenant) > NAME_LENGTH:
            raise ValueError(f"keys[{number}].tenant is no name of letters, digits and _")
        if tenants.setdefault(digest, tenant) != tenant:
            raise ValueError(f"keys[{number}] is the key of another tenant, too")
    return tenants


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Alone among those that write the file. The lock is a file beside it, as each writing puts another in its place."""
    lock = file.with_name(f".{file.name}.lock")
    with ExitStack() as held:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(lock.open("wb")), fcntl.LOCK_EX)
        except OSError as error:
            raise ConfigError(
                f"cannot write: {error.strerror}",
                where=str(lock),
                remedy="Name a file in a folder of your own: keys=FILE.",
            ) from None
        yield


@dataclass
class Keys:
    """Hashes of keys, and the tenant of each. The file holds no key: one that is lost is made anew, for a tenant of another name."""

    file: Path
    tenants: dict[str, str]

    @classmethod
    def load(cls, file: Path) -> Keys:
        """The keys of a file, none where there is no file; a file of another shape is a `ConfigError`."""
        try:
            return cls(file, _tenants(json.loads(file.read_text(encoding="utf-8"))))
        except FileNotFoundError:
            return cls(file, {})
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"not a file of keys: {error}",
                where=str(file),
                remedy="Restore it, or remove it: then a new key is made at the next start, and the old ones are void.",
            ) from None

    def ensure(self, tenant: str) -> str | None:
        """A new key for `tenant`, written to the file beside what others have written there by now; None where the tenant has one already,
        which nobody can show again."""
        if not tenant.isidentifier() or len(tenant) > NAME_LENGTH:
            raise ConfigError(
                f"'{tenant[:NAME_LENGTH]}' is no name for a tenant", where="tenant", remedy="Use letters, digits and _."
            )
        if tenant in self.tenants.values():
            return None
        with _held(self.file):
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
        """Whose key it is; None for an unknown one. Every hash is compared, in constant time."""
        given, found = _hash(key), None
        for digest, name in self.tenants.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found
