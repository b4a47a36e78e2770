"""The file of keys: what else it may hold, and several starts at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from served import command

from rorqual.core.errors import ConfigError
from rorqual.serve.keys import Keys

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
        Keys.load(file)
    assert said in caught.value.what and caught.value.where == str(file)
    assert "Restore or remove the file" in caught.value.remedy
    file.write_text(rows({"sha256": DIGEST, "tenant": "a"}, {"sha256": DIGEST[::-1], "tenant": "a"}), encoding="utf-8")
    assert Keys.load(file).tenants == {DIGEST: "a", DIGEST[::-1]: "a"}


def test_a_server_does_not_start_with_such_a_file(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(POISONS["brackets 100,000 deep"][0], encoding="utf-8")
    done = subprocess.run(
        command(run, file, "port=0", "ui=false"), capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 2
    assert "not a valid key file" in done.stderr and str(file) in done.stderr and "Traceback" not in done.stderr


def test_a_key_of_every_start_is_kept_however_many_start_at_once(tmp_path: Path) -> None:
    file = tmp_path / "new" / "keys.json"
    code = (
        "import sys; from pathlib import Path; from rorqual.serve.keys import Keys; keys = Keys.load(Path(sys.argv[1]))"
    )
    code += "; print(flush=True); input(); print(keys.ensure(sys.argv[2]))"
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(file), f"t{number // 2}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for start in starts:  # each has read the file, which is not there, before the first writes it
        assert start.stdout is not None and start.stdout.readline() == "\n"
    for start in starts:
        assert start.stdin is not None
        start.stdin.write("\n")
        start.stdin.flush()
    shown = [start.communicate(timeout=60)[0].strip() for start in starts]
    keys = Keys.load(file)
    assert sorted(keys.tenants.values()) == ["t0", "t1", "t2", "t3"]
    for number in range(4):  # two starts for one tenant: one of them shows its key
        pair = shown[2 * number : 2 * number + 2]
        assert pair.count("None") == 1
        assert {keys.tenant(key) for key in pair} == {f"t{number}", None}
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_tenant_that_has_a_key_needs_no_writing(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    assert Keys.load(file).ensure("a")
    (tmp_path / ".keys.json.lock").unlink()
    assert Keys.load(file).ensure("a") is None
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="keys=FILE"):
        Keys(tmp_path / "file" / "keys.json", {}).ensure("a")
