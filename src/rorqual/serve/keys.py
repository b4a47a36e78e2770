"""API keys. Each key belongs to a tenant. A new key is shown once, and only its hash is stored."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rorqual.core.errors import ConfigError
from rorqual.core.lock import acquire_lock
from rorqual.core.records import write_atomic
from rorqual.serve.validation_errors import join_path

PREFIX = "rq-"
NAME_LENGTH = 64


def default_key_file() -> Path:
    """Return the default key file, `rorqual/keys.json` in the user's configuration folder."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rorqual" / "keys.json"


def _hash(key: str) -> str:
    # A key has 256 random bits and cannot be guessed, so a slow hash would add no protection.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


_TenantName = Annotated[str, Field(pattern=rf"^[^\W\d]\w{{0,{NAME_LENGTH - 1}}}$")]
_TENANT_NAME = TypeAdapter(_TenantName)


class _KeyRow(BaseModel):
    """One API key in the key file: the key's hash, and the key's tenant."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant: _TenantName


class _KeyFile(BaseModel):
    """The content of a key file."""

    model_config = ConfigDict(strict=True)

    keys: list[_KeyRow]


def _parse_key_tenants(text: str) -> dict[str, str]:
    """Return the tenant of each key hash in a key file. Raises ValueError if the file's structure is wrong."""
    try:
        rows = _KeyFile.model_validate_json(text).keys
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{join_path(first['loc'])}: {first['msg']}") from None
    tenants: dict[str, str] = {}
    for number, row in enumerate(rows):
        if tenants.setdefault(row.sha256, row.tenant) != row.tenant:
            raise ValueError(f"keys[{number}] repeats the key of another tenant")
    return tenants


@dataclass
class ApiKeys:
    """The hashes of API keys, each with its tenant.

    The keys themselves are not stored, so a lost key cannot be recovered. To replace a lost key, create
    a key under a new tenant name.
    """

    file: Path
    tenants: dict[str, str]

    @classmethod
    def load(cls, file: Path) -> ApiKeys:
        """Load a key file. If the file is missing, no keys exist. Raises ConfigError if the file is invalid."""
        try:
            return cls(file, _parse_key_tenants(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls(file, {})
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"not a valid key file: {error}",
                where=str(file),
                remedy="Restore or remove the file. "
                "After removal, the next start creates a new key, and old keys become invalid.",
            ) from None

    def ensure_key(self, tenant: str) -> str | None:
        """Create a key for `tenant`, add its hash to the file, and return the key. If the tenant already has a key, return
        None.

        The key file is first read again, because another process may have added keys. Raises RorqualError if another process
        is adding a key.
        """
        try:
            _TENANT_NAME.validate_python(tenant)
        except ValidationError:
            raise ConfigError(
                f"'{tenant[:NAME_LENGTH]}' is not a valid tenant name",
                where="tenant",
                remedy=f"Use at most {NAME_LENGTH} letters, digits and _, starting with a letter or _; start once for each tenant.",
            ) from None
        if tenant in self.tenants.values():
            return None
        with acquire_lock(self.file, "Start the servers one after another."):
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
        """Return the tenant of a key, or None if the key is unknown. The key is looked up by its hash, so the duration of the
        lookup reveals no key."""
        return self.tenants.get(_hash(key))
