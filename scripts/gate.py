"""Measure what sparse attention changes in the small DeepSeek-V3.2 of tests/fixtures, with a sound indexer and with broken ones
(tests/evals/broken_indexers.py).

    python scripts/gate.py

Index keys are cached in FP8. The result is written to docs/results/gate.json: for each indexer and each kind of text, the damage
with its intervals, at the model's own index_topk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rorqual.convert.hf import import_hf
from rorqual.core.records import RunDir, write_json
from rorqual.data.passages import KINDS, load_passage
from rorqual.data.source.text import read_text_split
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.damage import NamedText
from rorqual.evals.planted_passages import PLANTED
from rorqual.evals.sparse_attention_report import measure_sparse_attention
from rorqual.model import Decoder, build
from rorqual.model.load.run_directory import load_run

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "evals"))

from broken_indexers import FAULTS  # noqa: E402

TEXT = ROOT / "src" / "rorqual" / "data" / "samples" / "tinyshakespeare-64k.txt"
LENGTH, WINDOWS = 512, 8


def in_fp8(model: Decoder) -> Decoder:
    """Return the model with index keys that are cached in FP8."""
    stages = (
        stage.model_copy(update={"attention": stage.attention.model_copy(update={"index_dtype": "float8_e4m3fn"})})
        for stage in model.config.stages
    )
    narrow = build(model.config.model_copy(update={"stages": tuple(stages)}), seed=0)
    narrow.load_state_dict(model.state_dict())
    return narrow


def damage_by_text(model: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the damage for held-out Shakespeare, each kind of sample passage, needles and copied lines."""
    texts = [NamedText("shakespeare", read_text_split(TEXT).validation)]
    texts += [NamedText(kind, load_passage(kind)) for kind in KINDS]
    topk = model.config.stages[0].attention.index_topk  # type: ignore[attr-defined]
    report = measure_sparse_attention(
        model, tokenizer, texts, PLANTED, name="fixture", length=LENGTH, windows=WINDOWS, budgets=(topk,)
    )
    return {name: asdict(damage) for name, damage in report.summaries(topk).items()}


def main() -> None:
    """Measure the sound indexer and each fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--result", type=Path, default=ROOT / "docs" / "results" / "gate.json")
    result = parser.parse_args().result
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        import_hf(ROOT / "tests" / "fixtures" / "tiny-deepseek-v32", run.path)
        model, tokenizer = in_fp8(load_run(run)), Tokenizer.load(run.tokenizer_file)
        for name, fault in {"sound": nullcontext, **FAULTS}.items():
            with fault():
                found[name] = damage_by_text(model, tokenizer)
            kl = found[name]["shakespeare"]["kl"]
            print(f"{name}: KL {kl['mean']:.3f}, at most {kl['interval']['high']:.3f}", flush=True)
    write_json(result, {"command": "python scripts/gate.py", "damage": found})


if __name__ == "__main__":
    main()
