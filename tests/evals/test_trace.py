"""The trace page holds what the run kept, as text and never as markup, and asks for nothing from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.errors import CheckpointError, DataError
from rorqual.evals.trace_page import build_trace, rollouts_by_step, spread_steps

NASTY = "</script><script>document.title='taken'</script><b>bold</b> & \"quoted\"\u2028"


def sample(verdict: str, advantage: float, **texts: Any) -> dict[str, Any]:
    return {"verdict": verdict, "advantage": advantage, "finish": "stop", "tokens": 9, "thinking": 4} | texts


def group(step: int, key: str, verdicts: str, **texts: Any) -> dict[str, Any]:
    words = {"r": "right", "w": "wrong", "u": "ungraded"}
    said = {"reasoning": f"because {NASTY}", "text": NASTY} if texts else {}
    samples = [sample(words[v], {"r": 1.0, "w": -1.0, "u": 0.0}[v], **said) for v in verdicts]
    return {"step": step, "key": key, "family": "add", "level": "easy", "samples": samples} | texts


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = [
        group(1, "1+1", "rrrw", prompt=f"add 1+1 {NASTY}", answer="2"),
        group(1, "1+2", "wwww"),
        group(2, "1+1", "rwww"),
        group(2, "2+2", "uu"),
    ]
    (tmp_path / "run.yaml").write_text(
        "recipe: grpo\nseed: 3\nsteps: 2\nsource:\n  kind: rollouts\n  task: families\n  problems: 2\n  samples: 4\n  temperature: 1.0\n",
        encoding="utf-8",
    )
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    (tmp_path / "rollouts.jsonl").write_bytes(text + b'{"step": 3, "ke')
    records = [{"step": step, "reward": step / 4, "think_share": 0.5, "recipe": "grpo"} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in records))
    return tmp_path


def test_the_page_holds_no_markup_of_a_model(run: Path) -> None:
    path = build_trace(run)
    text = path.read_text(encoding="utf-8")
    assert path == run / "trace.html" and text.count("<script") == 2 and "<b>" not in text


def test_nothing_is_fetched_and_nothing_is_set_as_html(run: Path) -> None:
    text = build_trace(run).read_text(encoding="utf-8")
    outside = text.replace("http://www.w3.org/2000/svg", "")  # the name of a namespace, which nobody asks for
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp|<link(?! rel=\"icon\" href=\"data:)|\bsrc=", outside)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function", text)


def test_a_long_run_keeps_texts_of_steps_evenly_spaced() -> None:
    steps = list(range(1, 1001))
    chosen = spread_steps(steps, 5)
    assert sorted(chosen) == [1, 251, 500, 750, 1000] or (len(chosen) == 5 and {1, 1000} <= chosen)
    assert spread_steps(steps[:5], 5) == set(steps[:5])
    lines = [group(step, "a", "rw", prompt="p", answer="a") for step in range(1, 31)]
    made = rollouts_by_step(lines, [], 3)
    assert [s["step"] for s in made if "p" in s["groups"][0]] == sorted(spread_steps(range(1, 31), 3)) and len(
        made
    ) == 30


def test_a_folder_without_rollouts_is_refused(run: Path) -> None:
    (run / "rollouts.jsonl").unlink()
    with pytest.raises(DataError, match=r"the run has no saved rollouts\n.*source.trace=4"):
        build_trace(run)
    (run / "run.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"not a run directory: it has no run\.yaml"):
        build_trace(run)
    assert not (run / "trace.html").exists()


def drawn_by_a_browser(page: Path, profile: Path, where: str = "") -> str:
    """The page as its script left it."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    assert browser, "No Chromium here: apt-get update && apt-get install -y chromium"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={profile}", "--dump-dom", f"{page.as_uri()}{where}"]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.decode()


@pytest.mark.browser
def test_a_browser_draws_it_and_keeps_a_models_words_as_text(run: Path, tmp_path: Path) -> None:
    drawn = drawn_by_a_browser(build_trace(run), tmp_path / "profile", "#1")
    assert "step 1 of 2" in drawn and "2 groups of step 1" in drawn and "advantage +1.00" in drawn
    assert "<title>Rorqual: rollouts of" in drawn and "&lt;b&gt;bold&lt;/b&gt;" in drawn and "<b>bold</b>" not in drawn
    assert drawn.count('class="card"') == 4 and drawn.count('class="dot"') == 8


@pytest.mark.browser
def test_it_opens_at_the_last_step_with_axes_that_are_true(run: Path, tmp_path: Path) -> None:
    """Steps 1, 2 and 11 stand where their numbers say, a top is a round number above all values, and what is 0 is told, not drawn."""
    lines = [group(step, f"{step}+1", "rrrw") for step in (1, 2, 11)]
    (run / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    lengths = {1: 30.0, 2: 60.0, 11: 120.0}
    records = [{"step": k, "reply_length": v, "entropy": 0.0, "routing_flips": 0} for k, v in lengths.items()]
    records[1]["right_at_once"] = 0.5
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    drawn = drawn_by_a_browser(build_trace(run), tmp_path / "profile")
    assert "step 11 of 11" in drawn and "1 group of step 11" in drawn and "0 to 200" in drawn
    height = 90
    places = [(0, 30), (30, 60), (300, 120)]  # of a width of 300: steps 1 to 11
    wanted = "".join(
        f"{mark}{x:.1f},{height - y / 200 * height:.1f}" for mark, (x, y) in zip("MLL", places, strict=True)
    )
    assert f'd="{wanted}"' in drawn
    assert 'd="M30.0,45.0h0"' in drawn, "a lone value is a dot"
    assert re.findall(r"<h3>([^<]*)", drawn) == ["Right", "Length, tokens", "Groups with a gradient"]
    assert "0 at every step: entropy, nats per token; router without replay." in drawn
    assert drawn.count('<p class="ends"><span>step 1</span><span>11</span></p>') == 3
