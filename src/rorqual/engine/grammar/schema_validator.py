"""Validate finished answers against their JSON schema with the optional package jsonschema-rs."""

from __future__ import annotations

import json
from typing import Any

from rorqual.engine.grammar.source import nesting_depth
from rorqual.engine.grammar.trial_process import build_validator

MISMATCH = "the answer does not match the JSON schema"
"""Beginning of the error message for a finished answer that violates its schema."""


class SchemaValidator:
    """Validates answers against one JSON schema. The JSON schema must have passed a trial."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._validator = build_validator(schema)

    def find_error(self, text: str) -> str:
        """Return an error that names the violated keyword and the keyword's place in the JSON schema, or "" if the answer
        matches the JSON schema."""
        try:
            answer = json.loads(text)
            nesting_depth(answer)  # jsonschema-rs has no limit of its own
            error = next(iter(self._validator.iter_errors(answer)), None)
        except (ValueError, RecursionError) as failed:
            return f"{MISMATCH}: it cannot be checked ({str(failed)[:60]})"
        if error is None:
            return ""
        *path, keyword = [str(step) for step in error.schema_path] or ["false"]
        instance = json.dumps(error.instance, ensure_ascii=False)
        return f"{MISMATCH}: {keyword!r} at {'/'.join(['#', *path])[:200]} does not hold for {instance[:60]}"
