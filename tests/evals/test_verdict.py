"""A verdict on a method needs five seeds and two 99 % intervals; what has less is open."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.evals.stats import Interval, t_interval
from rorqual.evals.verdict import Verdict, combine_verdicts, judge, wider_interval
from rorqual.lab.experiment_run import judge_finding_again
from rorqual.lab.finding import PARTIAL, TOO_FEW, Finding
from rorqual.lab.page import page_text

CLOSE = [0.1, 0.101, 0.099, 0.1, 0.1]
T = {1: 63.657, 2: 9.925, 3: 5.841, 4: 4.604, 5: 4.032, 6: 3.707}
"""Student's t at 99 %, of the tables."""


def test_a_verdict_needs_each_of_its_three_conditions() -> None:
    sure = Interval(0.09, 0.11, 0.99)
    assert judge(sure, CLOSE) == "holds" and judge(Interval(-0.11, -0.09, 0.99), [-d for d in CLOSE]) == "does not hold"
    assert judge(sure, CLOSE[:4]) == "open", "four seeds"
    assert judge(Interval(0.09, 0.11, 0.95), CLOSE) == "open", "an interval of 95 %"
    assert judge(Interval(-0.01, 0.11, 0.99), CLOSE) == "open", "the bootstrap alone says no"
    assert judge(sure, [0.0, 0.03, 0.04, 0.08, 0.35]) == "open", "Student's alone says no"
    rounded = [0.3 - 0.2, 0.1, 0.1, 0.4 - 0.3, 0.1]
    assert len(set(rounded)) > 1 and judge(sure, rounded) == "open", "equal but for rounding"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=7), st.floats(-1, 1), st.floats(0, 0.3), st.floats(-0.5, 0.5))
def test_a_verdict_is_that_of_a_second_writing(seeds: list[float], low: float, width: float, bound: float) -> None:
    found = judge(Interval(low, low + width, 0.99), seeds, bound)
    expected = "open"
    if len(seeds) >= 5 and min(width, max(seeds) - min(seeds)) > 1e-8:  # an interval of zero width is none
        middle = statistics.fmean(seeds)
        reach = T[len(seeds) - 1] * statistics.stdev(seeds) / math.sqrt(len(seeds))
        near = min(abs(middle - reach - bound), abs(middle + reach - bound)) < 1e-3 * max(reach, 1e-9)
        if near:
            return
        if low > bound and middle - reach > bound:
            expected = "holds"
        if low + width < bound and middle + reach < bound:
            expected = "does not hold"
    assert found == expected
    turned: dict[Verdict, Verdict] = {"holds": "does not hold", "does not hold": "holds", "open": "open"}
    assert judge(Interval(low, low + width, 0.99), seeds, bound, "below") == turned[found]


def test_the_ends_are_the_wider_of_both() -> None:
    student = t_interval([0.0, 0.1, 0.2], 0.99)
    assert wider_interval(Interval(0.05, 5.0, 0.99), [0.0, 0.1, 0.2]) == Interval(student.low, 5.0, 0.99)
    assert wider_interval(Interval(-5.0, 0.15, 0.99), [0.0, 0.1, 0.2]) == Interval(-5.0, student.high, 0.99)
    assert wider_interval(Interval(0.1, 0.2, 0.99), [0.1]) == Interval(-math.inf, math.inf, 0.99)


def test_a_claim_in_parts() -> None:
    assert combine_verdicts(["holds", "holds"]) == "holds" and combine_verdicts(["holds", "open"]) == "open"
    assert combine_verdicts(["open", "does not hold"]) == "does not hold" and combine_verdicts([]) == "open"


def finding(seeds: int, **changes: Any) -> dict[str, Any]:
    contrast = {
        "question": "q", "a": 0.1, "b": 0.2, "difference": 0.1, "low": 0.09, "high": 0.11,
        "by_seed": [[0.1, 0.1 + d] for d in (CLOSE * 2)[:seeds]],
    }  # fmt: skip
    return {
        "experiment": "x", "title": "t", "claim": "c", "source": "s", "verdict": "holds", "words": ["w"],
        "contrasts": [contrast], "seeds": list(range(seeds)),
    } | changes  # fmt: skip


@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
def test_no_finding_of_fewer_than_five_seeds_says_more_than_its_rows(seeds: int) -> None:
    found = Finding.model_validate(finding(seeds))
    assert found.verdict == "open" and found.words == ("w", TOO_FEW)
    assert Finding.model_validate(found.model_dump(mode="json")) == found, "said once"
    assert found.contrasts[0].judge() == "open"
    page = page_text(found)
    assert "open" in page and ">holds<" not in page and ">higher<" not in page
    partial = Finding.model_validate(finding(5, share=0.06))
    assert partial.verdict == "open" and partial.words == ("w", PARTIAL), "less than the full work"
    assert partial.headline == "With 6.00% of the work: "
    assert Finding.model_validate(partial.model_dump(mode="json")) == partial, "said once"
    enough = Finding.model_validate(finding(5))
    assert enough.verdict == "holds" and enough.words == ("w",) and enough.contrasts[0].judge() == "holds"


def test_a_stored_finding_is_judged_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps(finding(3)), encoding="utf-8")
    page = judge_finding_again(file)
    assert json.loads(file.read_bytes())["verdict"] == "open" and "x: open" in capsys.readouterr().out
    assert page == tmp_path / "x.html" and "at least 5 seeds" in page.read_text(encoding="utf-8")
    before = file.read_bytes()
    judge_finding_again(file)
    assert file.read_bytes() == before
