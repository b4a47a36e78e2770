"""Train the quickstart on five seeds, ask each teacher the examples of the documentation, and grade the answers.

    make examples        # or: python scripts/examples.py [FOLDER]

The result is docs/results/examples.json, and tests/laws/test_documented_examples.py compares the pages with it. A page shows
only prompts that the teachers of all seeds answer rightly. The runs are in FOLDER (default: runs/examples). If the command is
stopped, the same command resumes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rorqual.core.records import Message
from rorqual.engine import Engine, Request, SamplingParams

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "results" / "examples.json"
SEEDS = (2, 3, 4, 5, 7)
PROMPTS = {
    "add 12+34": "46",
    "add 5+6": "11",
    "add 386+149": "535",
    "add 585+519": "1104",
    "add 4271+958": "5229",
    "sub 90-17": "73",
    "sub 9-3": "6",
    "sub 851-190": "661",
    "mod 575%9": "8",
    "swap debca db ab ce": "acdeb",
    "count c:ccftz": "2",
}
"""Prompts and their right answers."""


def answers(run: Path) -> dict[str, dict[str, str]]:
    """Return reasoning and answer of each prompt, made to think and by the model's own choice, at temperature 0."""
    engine = Engine(run)
    found: dict[str, dict[str, str]] = {prompt: {} for prompt in PROMPTS}
    for thinking in ("on", "auto"):
        params = SamplingParams(max_tokens=100, temperature=0)
        requests = [Request((Message("user", prompt),), params, thinking) for prompt in PROMPTS]
        for prompt, [reply] in zip(PROMPTS, engine.generate(requests), strict=True):
            found[prompt][thinking] = reply.text.strip()
            found[prompt][f"{thinking}_reasoning"] = (reply.reasoning or "").strip()
    return found


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples")
    by_seed = {}
    for seed in SEEDS:
        out = folder / f"seed-{seed}"
        if not (out / "report.html").is_file():
            subprocess.run(
                [sys.executable, "-m", "rorqual", "quickstart", "--seed", str(seed), "--out", str(out)], check=True
            )
        by_seed[str(seed)] = answers(out / "teacher")
    right = {
        prompt: {
            thinking: sum(found[prompt][thinking] == answer for found in by_seed.values())
            for thinking in ("on", "auto")
        }
        for prompt, answer in PROMPTS.items()
    }
    result = {"command": "make examples", "answers": PROMPTS, "right": right, "seeds": by_seed}
    OUT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for prompt, counts in right.items():
        print(f"{prompt:<22} right in {counts['on']} of {len(SEEDS)} made to think, {counts['auto']} by own choice")


if __name__ == "__main__":
    main()
