"""The task defaults of a run folder: what a valid file says, and what an invalid one is refused for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir, TaskDefaults
from rorqual.core.sampling import Grammar

CHOICE = {"kind": "choice", "source": '["card", "pin"]'}


def written(folder: Path, text: str) -> RunDir:
    (folder / "defaults.json").write_text(text, encoding="utf-8")
    return RunDir(folder)


def test_a_run_without_the_file_has_no_defaults(tmp_path: Path) -> None:
    assert RunDir(tmp_path).task_defaults() == RunDir(tmp_path / "nowhere").task_defaults() == TaskDefaults()


@pytest.mark.parametrize(
    ("data", "defaults"),
    [
        ({}, TaskDefaults()),
        ({"thinking": "off"}, TaskDefaults(thinking="off")),
        ({"max_tokens": 32}, TaskDefaults(max_tokens=32)),
        ({"grammar": CHOICE}, TaskDefaults(grammar=Grammar("choice", '["card", "pin"]'))),
        ({"grammar": {"kind": "json"}}, TaskDefaults(grammar=Grammar("json"))),
        ({"grammar": {"kind": "regex", "source": "[0-9"}}, TaskDefaults(grammar=Grammar("regex", "[0-9"))),
    ],
)
def test_each_key_is_read_and_may_be_missing(tmp_path: Path, data: dict[str, Any], defaults: TaskDefaults) -> None:
    assert written(tmp_path, json.dumps(data)).task_defaults() == defaults


@pytest.mark.parametrize(
    ("text", "says", "nearest"),
    [
        ("{", "not JSON", "{}"),
        ("[]", "(whole)", "{}"),
        ('{"max_token": 3}', "Did you mean 'max_tokens'", '{"max_tokens": 3}'),
        ('{"max_tokens": 0}', "key 'max_tokens'", '{"max_tokens": 1}'),
        ('{"max_tokens": true}', "key 'max_tokens'", '{"max_tokens": 1}'),
        ('{"thinking": "maybe"}', "key 'thinking'", '{"thinking": "auto"}'),
        ('{"grammar": {"kind": "choices"}}', "key 'grammar.kind'", '{"grammar": {"kind": "json"}}'),
        ('{"grammar": {"source": ""}}', "key 'grammar.kind'", '{"grammar": {"kind": "json", "source": ""}}'),
        ('{"grammar": {"kind": "json", "text": ""}}', "key 'grammar.text'", '{"grammar": {"kind": "json"}}'),
        *(
            (
                json.dumps({"grammar": {"kind": kind, "source": "[1"}}),
                f"the source of kind '{kind}' is not JSON",
                json.dumps({"grammar": {"kind": kind, "source": "[1]"}}),
            )
            for kind in ("json_schema", "choice", "calls")
        ),
    ],
)
def test_an_invalid_file_is_refused_beside_its_valid_twin(tmp_path: Path, text: str, says: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, text).task_defaults()
    error = caught.value
    assert says in error.what and error.where == str(tmp_path / "defaults.json") and "delete the file" in error.remedy
    assert written(tmp_path, nearest).task_defaults() is not None
