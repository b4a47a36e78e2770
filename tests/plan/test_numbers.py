"""Amounts as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.core.config import Config, parse_config
from rorqual.core.errors import ConfigError
from rorqual.plan.numbers import (
    Amount,
    Count,
    Positions,
    format_bytes,
    format_duration,
    format_short,
    format_usd,
    parse_amount,
)


class Asked(Config):
    tokens: Amount = 0.0
    n: Count = 0
    context: Positions = 0


def test_suffixes() -> None:
    assert [parse_amount(text) for text in ("14.8T", "2.788M", "4k", "1_000", "2,048", "3e8", "1.5B", "7")] == [
        14.8e12, 2.788e6, 4000, 1000, 2048, 3e8, 1.5e9, 7,
    ]  # fmt: skip
    assert parse_config(Asked, {"tokens": "14.8T", "n": "2k", "context": "4k"}, where="here") == Asked(
        tokens=14.8e12, n=2000, context=4096
    )


@pytest.mark.parametrize("text", ["", "many", "14.8X", "T", "1..2", "0x10", "nan", "inf", "1 2"])
def test_what_is_no_number_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match="key 'tokens': write a number such as"):
        parse_config(Asked, {"tokens": text}, where="here")


def test_half_a_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="not an integer"):
        parse_config(Asked, {"n": "2.5"}, where="here")


@settings(deadline=None)
@given(st.floats(1, 9e14))
def test_what_is_written_short_reads_back(value: float) -> None:
    assert parse_amount(format_short(value)) == pytest.approx(value, rel=1e-3)


def test_units() -> None:
    assert [format_usd(v) for v in (5.576e6, 1.3e9, 87072, 12.5, 0.14)] == [
        "$5.576M",
        "$1.300B",
        "$87,072",
        "$12.50",
        "$0.14",
    ]
    assert [format_duration(v) for v in (0.0015, 1.5, 600, 4.9e6)] == [
        "1.5 ms",
        "1.5 seconds",
        "10.0 minutes",
        "56.7 days",
    ]
    assert [format_bytes(v) for v in (512, 70272, 80e9, 1.5e12)] == ["512 bytes", "70.3 kB", "80 GB", "1.5 TB"]
