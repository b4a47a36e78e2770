"""Measure the figures of docs/how-to/compute.md, and take its picture.

    python scripts/compute_figures.py [FOLDER]      # default: runs/compute; about 10 minutes of one core

Runs that are in FOLDER already are not trained again. Needs playwright and a Chromium. The results are docs/results/compute.json
and docs/pictures/compute-replies.png.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import playwright.sync_api as playwright
from PIL import Image

from rorqual.core.records import write_json
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.votes import rule_results

ROOT = Path(__file__).parent.parent
TASK = "task=families:add,gcd,mod,swap"
ROUTER = (
    "model.stages.1.ffn.router={kind: zero, n_routed_experts: 12, zero_expert_num: 6, num_experts_per_tok: 3, "
    "expected_experts: 2.0, routed_scaling_factor: 3.0}"
)
BUDGETS = (5, 20, 40, 0)
COMMANDS = {
    "student": f"train sft {TASK} size=small steps=500 threads=1 out=student",
    "votes.json": f"eval student {TASK} votes=16 temperature=1 threads=1 out=votes.json",
    **{f"budget-{n}.json": f"eval student {TASK} think_budget={n} threads=1 out=budget-{n}.json" for n in BUDGETS},
    "zero": f"train sft {TASK} size=small steps=600 balance.gamma=0.01 threads=1 out=zero '{ROUTER}'",
    "experts.json": f"compute zero {TASK} threads=1 out=experts.json page=compute.html",
}
"""What a command makes, and the command, in the order in which they run."""


def figures(folder: Path) -> dict[str, Any]:
    """Return the figures of the page."""
    votes = rule_results(Evaluation.load(folder / "votes.json"))
    budgets = []
    for budget in BUDGETS:
        [row] = Evaluation.load(folder / f"budget-{budget}.json").rows("all")
        ends = {"accuracy": row.accuracy, "low": row.interval.low, "high": row.interval.high}
        budgets.append({"budget": budget or None, **ends, "tokens": row.length, "thinking_tokens": row.thinking_length})
    return {
        "commands": [f"rorqual {command}" for command in COMMANDS.values()],
        "votes": [
            {
                "answer": one.rule,
                "samples": one.samples,
                "accuracy": one.accuracy,
                "low": one.interval.low,
                "high": one.interval.high,
                "tokens": one.tokens,
            }
            for one in votes
        ],
        "think_budget": budgets,
        "experts": json.loads((folder / "experts.json").read_text(encoding="utf-8"))["groups"],
    }


def main() -> None:
    """Run the commands, write the figures, and take the picture."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/compute").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for made, command in COMMANDS.items():
        if not (folder / made).exists():
            subprocess.run([sys.executable, "-m", "rorqual", *shlex.split(command)], cwd=folder, check=True)
    write_json(ROOT / "docs" / "results" / "compute.json", figures(folder))
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 900, "height": 900}, color_scheme="light")
        page.goto((folder / "compute.html").as_uri())
        box = page.locator("#texts").bounding_box()
        last = page.locator("#texts details[open]").last.bounding_box()
        assert box is not None and last is not None
        height = last["y"] + last["height"] - box["y"]
        file = ROOT / "docs" / "pictures" / "compute-replies.png"
        page.screenshot(path=file, full_page=True, clip={**box, "height": height})
        Image.open(file).quantize(64).save(file, optimize=True)
        opened.close()


if __name__ == "__main__":
    main()
