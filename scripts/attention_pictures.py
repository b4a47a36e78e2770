"""Train a small model with sparse attention, measure what sparse attention changes, and take the pictures of docs/how-to/attention.md.

    python scripts/attention_pictures.py [FOLDER]      # default: runs/attention; about 10 minutes of one core

Runs that are in FOLDER already are not trained again. Needs playwright and a Chromium. The results are FOLDER/damage.html
and docs/pictures/attention-*.png.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import playwright.sync_api as playwright
from PIL import Image

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "src" / "rorqual" / "data" / "samples" / "tinyshakespeare-64k.txt"
COMMANDS = {
    "dense": "train pretrain data=shakespeare.txt size=small steps=400 rows=8 row=256 out=dense threads=1",
    "sparsified/sparse": "sparsify dense sparsified index_topk=32 warmup=60 steps=80 threads=1",
    "damage.html": "attention sparsified/sparse data=shakespeare.txt,kinds,needle,copy length=256 threads=1 page=damage.html",
}
"""What a command makes, and the command, in the order in which they run."""
PICTURES = {"attention-needles": "#planted figure img", "attention-damage": "#damage"}
"""Name of a picture, and the part of the page that it shows."""


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/attention").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(TEXT, folder / "shakespeare.txt")
    for made, command in COMMANDS.items():
        if made == "damage.html" or not (folder / made).exists():
            subprocess.run([sys.executable, "-m", "rorqual", *command.split()], cwd=folder, check=True)
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 840, "height": 900}, color_scheme="light")
        page.goto((folder / "damage.html").as_uri())
        for name, part in PICTURES.items():
            file = ROOT / "docs" / "pictures" / f"{name}.png"
            page.locator(part).screenshot(path=file)
            Image.open(file).quantize(64).save(file, optimize=True)
        opened.close()


if __name__ == "__main__":
    main()
