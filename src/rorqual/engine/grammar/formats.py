"""Regular expressions for the string formats of JSON Schema and for the formats that pydantic writes.

`date`, `time` and `date-time` accept only valid dates and times (no 2023-02-29, no second 60), and `uuid4` requires
version 4. According to the specification, unknown formats (`binary`, `password`, `int32`, ...) are annotations and
constrain nothing.
"""

from __future__ import annotations

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP}-02-29)"
)
_HOURS = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOURS}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_HOURS})"
_N = "[0-9]{1,6}"
_CLOCK = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_DAYS = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_HEX = "[0-9a-fA-F]{1,4}"
_IPV6 = "(?:" + "|".join(
    [f"(?:{_HEX}:){{7}}{_HEX}", *(f"(?:{_HEX}:){{{count}}}(?::{_HEX}){{1,{7 - count}}}" for count in range(1, 7)),
     f":(?::{_HEX}){{1,7}}", f"(?:{_HEX}:){{1,7}}:", "::"]
) + ")"  # fmt: skip
_V4_BITS, _V6_BITS = "(?:3[0-2]|[12]?[0-9])", "(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*(?::[1-9][0-9]{{0,3}})?"
_HEX12 = "[0-9a-fA-F]{12}"


def _uuid(version: str) -> str:
    return f"[0-9a-fA-F]{{8}}-[0-9a-fA-F]{{4}}-{version}[0-9a-fA-F]{{3}}-[89abAB][0-9a-fA-F]{{3}}-{_HEX12}"


def _network(bits: int) -> str:
    """Return an expression for IPv4 networks with a prefix of whole bytes.

    All bytes of the address after the prefix are 0.
    """
    return r"\.".join([_BYTE] * (bits // 8) + ["0"] * (4 - bits // 8)) + f"/{bits}"


EXPRESSIONS: dict[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:{_N}W|{_DAYS}(?:{_CLOCK})?|{_CLOCK})",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": f"(?:{_IPV4}|{_IPV6})",
    "ipv4interface": f"{_IPV4}(?:/{_V4_BITS})?",
    "ipv6interface": f"{_IPV6}(?:/{_V6_BITS})?",
    "ipvanyinterface": f"(?:{_IPV4}(?:/{_V4_BITS})?|{_IPV6}(?:/{_V6_BITS})?)",
    "ipv4network": rf"(?:{'|'.join(_network(bits) for bits in (8, 16, 24))}|{_IPV4}(?:/32)?|0\.0\.0\.0/0)",
    "ipv6network": f"(?:{_IPV6}(?:/128)?|(?:{_HEX}:){{1,4}}:/64|::/0)",
    "uuid": "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}" + _HEX12,
    **{f"uuid{version}": _uuid(str(version)) for version in (1, 3, 4, 5, 6, 7, 8)},
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
    "base64": "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
    "base64url": "(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=)?",
    "multi-host-uri": rf"[a-z][a-z0-9+]*://(?:[a-zA-Z0-9_]+(?::[a-zA-Z0-9_]+)?@)?{_HOST}(?:,{_HOST})*(?:/[a-zA-Z0-9_-]*)?",
}  # fmt: skip
"""Regular expressions by format. Each expression must match the whole string."""
EXPRESSIONS["ipvanynetwork"] = f"(?:{EXPRESSIONS['ipv4network']}|{EXPRESSIONS['ipv6network']})"
LIBRARY = ("email", "hostname", "uri")
"""Formats that llguidance enforces itself."""
CHECKED = ("idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template", "regex")
"""JSON Schema formats that have no regular expression of reasonable size. Finished answers are validated against these
formats."""
