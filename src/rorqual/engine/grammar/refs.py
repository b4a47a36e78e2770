"""Rewrite all references within a JSON schema as pointers: `#/$defs/NAME`, or `#` for the root."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin

from rorqual.core.errors import DataError

NAMED = (
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
    "dependentRequired",
    "dependencies",
)
VALUES = ("const", "enum", "default", "example", "examples", "required")
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
HOLDERS = ("$defs", "definitions")


def resolve(schema: Any, pointer: str) -> Any:
    """Return the target of a pointer such as `#/$defs/a`. Return None if the target does not exist, or if `pointer` is
    an anchor."""
    for step in pointer.split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and step.isdecimal() and int(step) < len(schema):
            schema = schema[int(step)]
        elif isinstance(schema, dict) and step in schema:
            schema = schema[step]
        else:
            return None
    return schema if pointer.startswith(("#/", "#")) and pointer[1:2] in ("", "/") else None


def parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield (place, subschema) for every subschema of a schema. Values of `const`, `enum` and similar keywords are left
    out."""
    for pointer, part, _ in _with_bases(schema):
        yield pointer, part


def shown(name: str) -> str:
    """Return a name as printable text of at most 61 characters, for error messages."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 60 else name[:60] + "…"


def _with_bases(schema: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield (place for error messages, subschema, base URI of its references) for every subschema."""
    stack = [("#", schema, "")]
    while stack:
        place, part, base = stack.pop()
        if isinstance(part, dict) and isinstance(part.get("$id"), str) and not part["$id"].startswith("#"):
            base = urljoin(base, part["$id"])
        yield place, part, base
        if isinstance(part, list):
            stack += [(f"{place}/{i}", item, base) for i, item in reversed(list(enumerate(part)))]
        elif isinstance(part, dict):
            for key, value in reversed(part.items()):
                below_place = f"{place}/{shown(key)}"
                if key in NAMED and isinstance(value, dict):
                    stack += [(f"{below_place}/{shown(name)}", item, base) for name, item in reversed(value.items())]
                elif key not in VALUES and isinstance(value, dict | list):
                    stack.append((below_place, value, base))


def settle(schema: dict[str, Any]) -> None:
    """Rewrite every reference of `schema` as a pointer, in place, and move the targets to `$defs`.

    Raises DataError for a reference to another document, or to a target that does not exist or is ambiguous.
    """
    if not any(isinstance(part, dict) and part.keys() & set(REFERENCES) for _, part in parts(schema)):
        return
    addresses = _addresses(schema)
    anchors = [
        part["$dynamicAnchor"] for _, part in parts(schema) if isinstance(part, dict) and "$dynamicAnchor" in part
    ]
    names: dict[int, str] = {id(schema): "#"}
    for holder in HOLDERS:
        definitions = schema.get(holder)
        for name, part in definitions.items() if isinstance(definitions, dict) else ():
            names.setdefault(id(part), f"#/{holder}/{escaped(name)}")
    moved: dict[str, Any] = {}
    for place, part, base in list(_with_bases(schema)):
        for keyword in REFERENCES if isinstance(part, dict) else ():
            target = part.get(keyword)
            if not isinstance(target, str):
                continue
            subschema = _target(schema, target, base, addresses)
            if keyword == "$dynamicRef" and anchors.count(target.rpartition("#")[2]) > 1:
                raise DataError(
                    f"the '$dynamicRef' at {place} in the JSON schema has several targets of the same name, which is not supported",
                    remedy="Use $ref.",
                )
            if subschema is None:
                _missing(place, keyword, target)
            if id(subschema) not in names:
                name = f"part {len(moved)}"
                moved[name], names[id(subschema)] = subschema, f"#/$defs/{escaped(name)}"
            _write(part, keyword, names[id(subschema)])
    if moved:
        definitions = schema.get("$defs")
        schema["$defs"] = {**(definitions if isinstance(definitions, dict) else {}), **moved}


def _write(part: dict[str, Any], keyword: str, pointer: str) -> None:
    if keyword == "$ref":
        part["$ref"] = pointer
        return
    del part[keyword]
    if "$ref" in part:
        part["allOf"] = [*part.get("allOf", []), {"$ref": pointer}]
    else:
        part["$ref"] = pointer


def escaped(name: str) -> str:
    """Escape a name for use in a JSON pointer."""
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~")


def _addresses(schema: Any) -> dict[str, Any]:
    """Return a dictionary that maps full URIs to subschemas, for every subschema with an `$id` or an anchor."""
    addresses: dict[str, Any] = {}
    for _, part, base in _with_bases(schema):
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("$id"), str) and not part["$id"].startswith("#"):
            addresses.setdefault(urldefrag(base)[0], part)
        for keyword in ("$anchor", "$dynamicAnchor", "$id"):
            if isinstance(name := part.get(keyword), str) and (keyword != "$id" or name.startswith("#")):
                addresses.setdefault(f"{urldefrag(base)[0]}#{name.removeprefix('#')}", part)
    return addresses


def _target(schema: Any, target: str, base: str, addresses: dict[str, Any]) -> Any:
    address, fragment = urldefrag(
        urljoin(base, target) if not target.startswith("#") else f"{urldefrag(base)[0]}{target}"
    )
    document = addresses.get(address, schema if not address else None)
    if document is None:
        return None
    if not fragment or fragment.startswith("/"):
        subschema = resolve(document, f"#{fragment}")
        return resolve(schema, f"#{fragment}") if subschema is None else subschema
    return addresses.get(f"{address}#{fragment}")


def _missing(place: str, keyword: str, target: str) -> None:
    if not target.startswith("#"):
        raise DataError(
            f"the reference at {place} in the JSON schema is to another document, {shown(target)}, which is not fetched",
            remedy="Put the target under $defs, and refer to it as #/$defs/NAME.",
        )
    raise DataError(
        f"the {keyword!r} at {place} in the JSON schema refers to {shown(target)}, which does not exist",
        remedy="Put the target under $defs, and refer to it as #/$defs/NAME.",
    )
