"""Keys: made at the first start, shown once, kept as hashes; each belongs to a tenant."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from rorqual.core.errors import ConfigError
from rorqual.core.records import write_atomic

PREFIX = "rq-"
NAME_LENGTH = 64


def default_file() -> Path:
    """`rorqual/keys.json` in the user's configuration folder."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rorqual" / "keys.json"


def _hash(key: str) -> str:
    # A key holds 256 random bits: there is nothing to guess, so nothing that a slow hash would protect.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass
class Keys:
    """Hashes of keys, and the tenant of each. The file holds no key: one that is lost is made anew, for a tenant of another name."""

    file: Path
    tenants: dict[str, str]

    @classmethod
    def load(cls, file: Path) -> Keys:
        """The keys of a file, none where there is no file; a file of another shape is a `ConfigError`."""
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))["keys"]
            return cls(file, {row["sha256"]: row["tenant"] for row in rows})
        except FileNotFoundError:
            return cls(file, {})
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"not a file of keys: {error}",
                where=str(file),
                remedy="Restore it, or remove it: then a new key is made at the next start, and the old ones are void.",
            ) from None

    def ensure(self, tenant: str) -> str | None:
        """A new key for `tenant`, written to the file; None where the tenant has one already, which nobody can show again."""
        if not tenant.isidentifier() or len(tenant) > NAME_LENGTH:
            raise ConfigError(
                f"'{tenant[:NAME_LENGTH]}' is no name for a tenant", where="tenant", remedy="Use letters, digits and _."
            )
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
