"""The file of keys: what else it may hold, and several starts at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.errors import ConfigError, RorqualError
from rorqual.core.lock import acquire_lock
from rorqual.serve.keys import ApiKeys

DIGEST = "0123456789abcdef" * 4


def rows(*found: Any) -> str:
    return json.dumps({"keys": found})


POISONS = {
    "a hash that is a number": (rows({"sha256": 5, "tenant": "a"}), "keys[0].sha256"),
    "a hash that is too short": (rows({"sha256": DIGEST[:-1], "tenant": "a"}), "keys[0].sha256"),
    "a hash of other letters": (rows({"sha256": "é" * 64, "tenant": "a"}), "keys[0].sha256"),
    "no hash": (rows({"sha256": DIGEST, "tenant": "a"}, {"tenant": "b"}), "keys[1].sha256"),
    "a tenant that is a list": (rows({"sha256": DIGEST, "tenant": ["a"]}), "keys[0].tenant"),
    "a tenant that is null": (rows({"sha256": DIGEST, "tenant": None}), "keys[0].tenant"),
    "a tenant that is no name": (rows({"sha256": DIGEST, "tenant": "a\n"}), "keys[0].tenant"),
    "a key of two tenants": (rows({"sha256": DIGEST, "tenant": "a"}, {"sha256": DIGEST, "tenant": "b"}), "keys[1]"),
    "a row that is none": (rows(1), "keys[0]"),
    "keys that are no list": (json.dumps({"keys": {DIGEST: "a"}}), "keys"),
    "a list": (json.dumps([DIGEST]), "object"),
    "brackets without end": ("[" * 100_000, ""),
    "brackets 100,000 deep": ("[" * 100_000 + "]" * 100_000, ""),
    "half a file": (rows({"sha256": DIGEST, "tenant": "a"})[:-1], ""),
    "other bytes": ("\udcff", ""),
}


@pytest.mark.parametrize("name", POISONS)
def test_a_file_of_another_shape_is_named_with_what_is_wrong_and_the_remedy(tmp_path: Path, name: str) -> None:
    text, said = POISONS[name]
    file = tmp_path / "keys.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        ApiKeys.load(file)
    assert said in caught.value.what and caught.value.where == str(file)
    assert "Restore or remove the file" in caught.value.remedy
    file.write_text(rows({"sha256": DIGEST, "tenant": "a"}, {"sha256": DIGEST[::-1], "tenant": "a"}), encoding="utf-8")
    assert ApiKeys.load(file).tenants == {DIGEST: "a", DIGEST[::-1]: "a"}


@pytest.mark.parametrize("tenant", ["col·lectiu", "a²", "", "1a", "a-b", "a\n", "a" * 65, "\udcff"])
def test_a_tenant_that_the_file_cannot_hold_is_refused_and_all_others_keep_their_keys(
    tmp_path: Path, tenant: str
) -> None:
    keys = ApiKeys.load(tmp_path / "keys.json")
    assert keys.ensure_key("é" * 64)
    with pytest.raises(ConfigError, match="is not a valid tenant name"):
        keys.ensure_key(tenant)
    assert [*ApiKeys.load(keys.file).tenants.values()] == ["é" * 64]


def test_a_key_that_another_process_made_meanwhile_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "new" / "keys.json"
    first, second = ApiKeys.load(file), ApiKeys.load(file)
    key = first.ensure_key("a")
    other = second.ensure_key("b")
    assert key and other and second.ensure_key("a") is None and ApiKeys.load(file).ensure_key("b") is None
    assert [ApiKeys.load(file).tenant(one) for one in (key, other, "rq-")] == ["a", "b", None]
    assert file.stat().st_mode & 0o777 == 0o600 and [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for file in (tmp_path / "file" / "keys.json", tmp_path / "keys.json"):
        with acquire_lock(tmp_path / "keys.json", ""), pytest.raises(RorqualError) as caught:
            ApiKeys(file, {}).ensure_key("a")
        assert caught.value.where == str(file)
