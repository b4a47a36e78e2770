"""The values of every problem, stored with a finding, so that its verdict can be computed again without the runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rorqual.core.config import Config, Natural

Readings = Mapping[str, Mapping[str, Mapping[str, Mapping[Any, float]]]]
"""The readings: the values measured in one seed, as readings[quantity][arm][group][item]. An item is a problem, a document or a
run."""


class ItemValues(Config):
    """The values of one quantity, arm and group. `items` is an index into `SeedValues.items`. `values` has one number for each
    item, separated by blanks. Each number is written with all of its digits."""

    quantity: str
    arm: str
    group: str
    items: Natural
    values: str


class SeedValues(Config):
    """All readings of one seed. `items` lists the different sequences of items, which many arms share."""

    items: tuple[tuple[str, ...], ...]
    series: tuple[ItemValues, ...]

    def readings(self) -> Readings:
        """Return the readings. Each item is named by a string."""
        found: dict[str, dict[str, dict[str, dict[Any, float]]]] = {}
        for one in self.series:
            pairs = dict(zip(self.items[one.items], map(float, one.values.split()), strict=True))
            found.setdefault(one.quantity, {}).setdefault(one.arm, {})[one.group] = pairs
        return found


def pack_readings(readings: Readings) -> SeedValues:
    """Return the readings of one seed in the form in which a finding stores them."""
    items: dict[tuple[str, ...], int] = {}
    series = [
        ItemValues(
            quantity=quantity,
            arm=arm,
            group=group,
            items=items.setdefault(tuple(map(str, values)), len(items)),
            values=" ".join(repr(float(value)).removesuffix(".0") for value in values.values()),
        )
        for quantity, arms in readings.items()
        for arm, groups in arms.items()
        for group, values in groups.items()
    ]
    return SeedValues(items=tuple(items), series=tuple(series))
