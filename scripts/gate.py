"""Measure the weighted recall of sparse runs with a sound indexer and with broken ones (tests/evals/broken_indexers.py).

    python scripts/gate.py runs/fixtures/imported runs/fixtures-1/imported

The runs are those of `scripts/fixtures.py --seed 0` and `--seed 1`. The release gate `min_recall=0.9` must pass for
each sound indexer and fail for each fault. The result is written to docs/results/gate.json.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from rorqual.core.records import RunDir, write_json
from rorqual.data.source.text import read_text_split
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.sparse_attention_misses import measure_selection_misses
from rorqual.model import Decoder, build
from rorqual.model.load.run_directory import load_run

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "evals"))

from broken_indexers import FAULTS  # noqa: E402

TEXT = ROOT / "src" / "rorqual" / "data" / "samples" / "tinyshakespeare-64k.txt"
LENGTH, WINDOWS = 512, 8
MIN_RECALL = 0.9


def in_fp8(model: Decoder) -> Decoder:
    """Return the model with index keys that are cached in FP8."""
    stages = (
        stage.model_copy(update={"attention": stage.attention.model_copy(update={"index_dtype": "float8_e4m3fn"})})
        for stage in model.config.stages
    )
    narrow = build(model.config.model_copy(update={"stages": tuple(stages)}), seed=0)
    narrow.load_state_dict(model.state_dict())
    return narrow


def recalls(run: RunDir) -> dict[str, float]:
    """Return the lowest weighted recall of a layer on held-out text, for the sound indexer and for each fault.

    Index keys are cached in FP8.
    """
    model, ids = in_fp8(load_run(run)), Tokenizer.load(run.tokenizer_file).encode(read_text_split(TEXT).validation)
    windows = torch.tensor([ids[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(WINDOWS)])
    found = {"sound, keys not in FP8": round(measure_selection_misses(load_run(run), windows).weighted_recall, 4)}
    for name, fault in {"sound": nullcontext, **FAULTS}.items():
        with fault():
            found[name] = round(measure_selection_misses(model, windows).weighted_recall, 4)
        print(f"{run.path}  {name}: {found[name]}", flush=True)
    return found


def main() -> int:
    """Measure all runs, and exit with 1 if the gate passes a broken indexer or fails a sound one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--result", type=Path, default=ROOT / "docs" / "results" / "gate.json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    found = [recalls(RunDir(run)) for run in a.runs]
    write_json(a.result, {"command": "python scripts/gate.py " + " ".join(map(str, a.runs)), "weighted_recall": found})
    return int(any((recall >= MIN_RECALL) != name.startswith("sound") for one in found for name, recall in one.items()))


if __name__ == "__main__":
    sys.exit(main())
