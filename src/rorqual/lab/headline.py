"""The headline of a finding. Each sentence is generated from the contrast that its words name: the measured quantity, both arms,
the direction and the bound. No sentence is written by hand, so a headline cannot say what no contrast tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rorqual.evals.verdict import Verdict
from rorqual.lab.finding import Contrast, Side, Unit


@dataclass(frozen=True, kw_only=True)
class ClaimPart:
    """A part of a claim: the value of `measure` in arm b minus that in arm a lies on `side` of `bound`.

    `a` and `b` are adverbial phrases, such as "with the router bias". `where` follows the measure, such as
    " at equal core-seconds". If `unit` is "%", `bound` is a fraction of arm a's value. `contrast` and `verdict` are None if the
    contrast was never computed.
    """

    measure: str
    a: str
    b: str
    where: str
    side: Side
    bound: float
    unit: Unit | Literal["%"]
    contrast: Contrast | None
    verdict: Verdict | None

    def sentence(self) -> str:
        """Return the sentence that words the verdict. An open verdict is worded as open, never as equality."""
        if self.verdict is None:
            return f"Whether {self._statement(True)} was not measured."
        if self.verdict == "open":
            return f"Whether {self._statement(True)} is open."
        statement = self._statement(self.verdict == "holds")
        return f"{statement[0].upper()}{statement[1:]}."

    def _statement(self, holds: bool) -> str:
        upward = self.bound > 0 if self.bound else (self.side == "above") == holds
        return f"{self.measure}{self.where} is {self._limit(holds)}{'higher' if upward else 'lower'} {self.b} than {self.a}"

    def _limit(self, holds: bool) -> str:
        if not self.bound:
            return ""
        outward = (self.side == "above") == (self.bound > 0)
        words = {
            (True, True): "at least",
            (True, False): "not at least",
            (False, True): "at most",
            (False, False): "more than",
        }
        unit = {"ratio": "", "number": ""}.get(self.unit, self.unit)
        amount = f"{abs(self.bound) * (100 if unit in ('%', 'points') else 1):g}"
        return f"{words[outward, holds]} {amount} {unit.removesuffix('s') if amount == '1' else unit}".rstrip() + " "
