"""Every measured figure of README and of every page in docs stands in its result file, and a wrong one is caught."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def script(folder: str, name: str) -> ModuleType:
    """A script of this repository as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / folder))
        spec.loader.exec_module(module)
    return module


figures = script("scripts", "figures")


def test_every_figure_stands_in_its_result_file() -> None:
    assert list(figures.problems(ROOT)) == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The pages and the results, to be spoiled."""
    for name in (*figures.pages(), figures.LIST):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    return tmp_path


def spoil(root: Path, page: str, old: str, new: str) -> list[str]:
    """What is said of a page in which one text was changed."""
    text = (root / page).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (root / page).write_text(text.replace(old, new), encoding="utf-8")
    return list(figures.problems(root))


@pytest.mark.parametrize(
    ("page", "old", "new", "told"),
    [
        ("docs/explanation/quickstart.md", "| 49.0 | 90.0 |", "| 49.0 | 90.1 |", "'90.1' should be 90.0, by docs/results/"),
        ("docs/explanation/quickstart.md", "[-5.6, 8.8]", "[5.6, 8.8]", "'5.6' should be -5.6"),
        ("README.zh.md", "70.0 %", "71.0 %", "'71.0' should be 70.0"),
        ("docs/explanation/claims.md", "-0.149 to -0.015", "-0.149 to -0.051", "'-0.051' should be -0.015"),
        ("docs/explanation/claims.md", "layer carries 5.09 times", "layer carries 5.90 times", "'5.90' should be 5.09"),
        ("README.md", "# ten minutes on two cores", "# nine minutes on two cores", "'nine' should be 10, by sum docs/results/"),
        ("README.zh.md", "双核约十分钟", "双核约九分钟", "'九' should be 10, by sum docs/results/"),
        ("docs/LOG.md", "training 1.174 (0.929", "training 1.074 (0.929", "'1.074' should be 1.174, by median docs/results/"),
        ("docs/how-to/teach.md", "file solves 68 of 100 orders", "file solves 67 of 100 orders", "'67' should be 68"),
        ("README.md", "and is written to be read", "37.5 % quicker, and is written to be read", "'37.5' has no source"),
        ("docs/explanation/claims.md", "there is no routing of questions", "there is, by 17 points, no routing", "'17' has no source"),
    ],
)  # fmt: skip
def test_a_wrong_figure_or_one_without_a_source_is_caught(copy: Path, page: str, old: str, new: str, told: str) -> None:
    found = spoil(copy, page, old, new)
    assert len(found) == 1 and told in found[0] and found[0].startswith(f"{page}, line ")


def test_a_new_page_is_guarded(copy: Path) -> None:
    (copy / "docs" / "new.md").write_text(
        "Three of five, one in eighteen and 8 of 9: done in nine minutes.", encoding="utf-8"
    )
    found = [line.split("'")[1] for line in figures.problems(copy)]
    assert found == ["one", "eighteen", "8", "nine"]


def test_words_around_a_figure_that_changed_are_told(copy: Path) -> None:
    found = spoil(copy, "docs/explanation/quickstart.md", "RL mainly taught the model", "RL taught the model")
    assert found == []
    found = spoil(copy, "docs/explanation/quickstart.md", "to think rose from", "to think went from")
    assert "occurs 0 times" in found[0] and any("'50.2' has no source" in one for one in found)


def test_a_result_that_changed_is_written_into_the_pages(copy: Path) -> None:
    file = copy / "docs/results/quickstart-seeds.json"
    data = json.loads(file.read_bytes())
    data["questions"]["thinks, own choice: before GRPO against after"]["all"][0]["after"] = 0.8765
    file.write_text(json.dumps(data), encoding="utf-8")
    figures.result.cache_clear()
    told = list(figures.problems(copy))
    assert len(told) == 6 and all("'94.5' should be 87.7" in one or "'94.5' should be 87.6" in one for one in told)
    for page in figures.pages():
        (copy / page).write_text(figures.rewritten(copy, page), encoding="utf-8")
    assert list(figures.problems(copy)) == []
    page = " ".join((copy / "docs/explanation/quickstart.md").read_text(encoding="utf-8").split())
    assert "rose from 50.2 to 87.6 %" in page.replace("87.7", "87.6")


@pytest.mark.parametrize(
    ("text", "measured"),
    [
        ("it is 12.5 points", ["12.5"]),
        ("5 %, +3, -2 and [1, 2]", ["5", "+3", "-2", "1", "2"]),
        ("34 to 40 % of 50 tokens", ["34", "40"]),
        ("−15.8 and 1,234.5", ["−15.8", "1,234.5"]),
        ("3.4x and v1.2 stay words", []),
        ("two 99 % intervals, a 95 %\ninterval, 99 % 区间", []),
        ("arXiv 2412.19437, Python 3.11, `lr=0.5`, [x](a-1.5.md), 5 seeds, 2048 tokens, §4.5", []),
        ("```sh\nrun 1.5 %\n```\nthen 1.5", ["1.5"]),
        ("671.03B and 9:05", ["671.03"]),
        ("```sh\nmake x  # nine minutes\n```\n    rorqual x lr=0.5", ["nine"]),
        ("九分钟，十八分之一，占5.6%，一个数", ["九", "十八", "一", "5.6"]),
        ("8 of 9, eight of nine, ten points, a ten-minute run", ["8", "ten"]),
    ],
    ids=range(12),
)
def test_what_counts_as_a_measured_figure(text: str, measured: list[str]) -> None:
    assert [one.text for one in figures.numbers(text) if one.measured] == measured


def test_sources_say_where_and_how(tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    value = {
        "a/b": 0.25, "a / b - c": 4, "rows": [["12.5 %", "+95.0 *"], [1, 2, 6]], "words": "from 1.5 to +2.5%.",
        "pairs": {"x": {"a": 6, "b": 2}, "y": {"a": 8, "b": 4}},
        "items": [{"of": "x", "v": 1}, {"of": "y", "v": 8, "by_seed": [[0, 1], [0, 2], [0, 3]]}],
    }  # fmt: skip
    (folder / "f.json").write_text(json.dumps(value), encoding="utf-8")
    at = "docs/results/f.json#"
    for source, expected in {
        f"{at}/a/b *100": 25.0,
        f"-{at}/a/b": -0.25,
        f"{at}/a / b - c": 4.0,
        f"{at}/a / b - c / {at}/a/b": 16.0,
        f"{at}/rows/0/1": 95.0,
        f"{at}/rows/0/0 / {at}/a/b": 50.0,
        f"{at}/rows/1/2 - {at}/rows/1/0": 5.0,
        f"mean {at}/rows/1": 3.0,
        f"max {at}/rows/1/0:2": 2.0,
        f"median {at}/rows/1 *10": 20.0,
        f"sum {at}/items/*/v": 9.0,
        f"max {at}/pairs/*/a / {at}/pairs/*/b": 3.0,
        f"count {at}/rows/1": 3.0,
        f"{at}/words ~1": 2.5,
        f"{at}/items/of=y/v": 8.0,
        f"{at}/items/of=y/student/low": 2 - 9.92484 / 3**0.5,
    }.items():
        assert figures.worth(tmp_path, source) == pytest.approx(expected, rel=1e-4), source
    for wrong in (f"{at}/c", f"{at}/items/of=z/v", "elsewhere.json#/a"):
        with pytest.raises((LookupError, ValueError)):
            figures.worth(tmp_path, wrong)


def test_the_table_of_the_quickstart_is_the_one_that_its_result_gives() -> None:
    seeds = script("benchmarks", "seeds")
    made = seeds.table(json.loads((ROOT / "docs/results/quickstart-seeds.json").read_bytes())).split("\n")[2:]
    text = (ROOT / "docs/explanation/quickstart.md").read_text(encoding="utf-8")
    for row in made:
        assert row.split(" | ", 1)[1] in text, "Print the rows again with benchmarks/seeds.py --table"


def test_stored_flags_of_taught_models_follow_the_rule_of_five_seeds() -> None:
    teach = script("benchmarks", "teach")
    stored = json.loads(teach.RESULT.read_bytes())
    found = teach.summary(stored["runs"])
    for case, rows in found.items():
        for name, row in rows.items():
            flag = row.get("beyond_doubt")
            assert flag is stored["summary"][case][name].get("beyond_doubt"), (case, name)
            assert not flag or row["seeds"] >= 5, (case, name)
