"""Compare weights of 8 and 4 bits with bfloat16 in the native backend: the quality on a text, and the speed of decoding.

    python benchmarks/quantized.py RUN TEXT [--windows 64] [--window 256]

Quality: windows of TEXT, evenly spaced, are prompts of four engines: int8, int4, bfloat16 and, as reference, float32. The losses are the prompt
log-probabilities of engine steps. The whole distributions are those from which the engine takes them: a hook on the head keeps the logits
of a step's hidden states. KL is KL(float32 || other) in nats per token. Intervals are t intervals over windows.

Speed: each dtype is a process of benchmarks/decode.py with one thread. They decode in turn, so each ratio is of neighbouring
measurements. The bytes of weights are those of the linear maps and the head, as packed for the kernels, with scales. A dense model
reads them all in each step. The embedding's one row per token and the norms do not count.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode import Side, measure, rates, ratio, running, summary
from peers_decode.models import HERE
from record import ROOT, made_by
from torch import Tensor

from rorqual.core.records import write_json
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.engine.native.panels import PanelLinear
from rorqual.evals.stats import t_interval

RESULT = ROOT / "docs" / "results" / "quantized.json"
DTYPES = ("int8", "int4", "bfloat16", "float32")
BATCHES, PROMPT, NEW, ROUNDS = (1, 8), 32, 64, 5
SCORE = SamplingParams(max_tokens=1, prompt_logprobs=0)
Measured = dict[str, Any]


class Scorer:
    """An engine that returns whole next-token distributions of a prompt."""

    def __init__(self, run: Path, dtype: str) -> None:
        self.engine = Engine(run, dtype=dtype, backend="native", engine_cores=1)
        self._logits: list[Tensor] = []
        head = self.engine.scoring_model.lm_head
        assert head is not None  # the native backend unties it
        head.register_forward_hook(lambda _head, _input, logits: self._logits.append(logits))

    def __call__(self, window: Tensor) -> tuple[Tensor, float]:
        """Return log-probabilities [tokens - 1, vocab] of a window's next tokens, and its mean loss in nats per token."""
        self._logits.clear()
        ((done,),) = self.engine.generate([Request(prompt_ids=tuple(window.tolist()), params=SCORE, reuse=False)])
        rows = torch.cat(self._logits).float().log_softmax(-1)
        assert done.prompt_logprobs is not None
        said = torch.tensor(done.prompt_logprobs[1:])
        torch.testing.assert_close(rows.gather(1, window[1:, None])[:, 0], said)  # the hook saw what the engine used
        return rows, -float(said.double().mean())

    def weight_bytes(self) -> int:
        maps = [vars(one) for one in self.engine.scoring_model.modules() if isinstance(one, PanelLinear)]
        return sum(value.nbytes for own in maps for value in own.values() if isinstance(value, Tensor))


def compare(scored: dict[str, tuple[Tensor, float]]) -> dict[str, float]:
    """Return the figures of a window: losses, and each dtype against float32."""
    reference, _ = scored["float32"]
    found = {f"loss of {dtype}": loss for dtype, (_, loss) in scored.items()}
    for first, second in combinations(DTYPES, 2):
        found[f"loss of {first} - {second}"] = found[f"loss of {first}"] - found[f"loss of {second}"]
    for dtype in DTYPES[:3]:
        rows, _ = scored[dtype]
        found[f"KL to float32 of {dtype}"] = float((reference.exp() * (reference - rows)).sum(-1).double().mean())
        found[f"same likeliest token as float32 of {dtype}"] = float(
            (reference.argmax(-1) == rows.argmax(-1)).double().mean()
        )
    return found


def quality(run: Path, text: str, count: int, length: int) -> Measured:
    """Return the mean figures over windows with their 99 % intervals, and the bytes of weights."""
    scorers = {dtype: Scorer(run, dtype) for dtype in DTYPES}
    ids = torch.tensor(scorers["float32"].engine.tokenizer.encode(text))
    if len(ids) < count * (length + 1):
        raise SystemExit(f"TEXT has {len(ids)} tokens, too few for --windows {count} --window {length}. Lower one.")
    windows = ids.unfold(0, length + 1, len(ids) // count)[:count]
    rows = [compare({dtype: scorer(window) for dtype, scorer in scorers.items()}) for window in windows]
    out: Measured = {"windows": count, "tokens of a window": length}
    for name in rows[0]:
        values = [row[name] for row in rows]
        out[name] = {"mean": float(np.mean(values))} | vars(t_interval(values, 0.99))
        print(f"{name}: {out[name]}", flush=True)
    out["perplexity"] = {dtype: math.exp(out[f"loss of {dtype}"]["mean"]) for dtype in DTYPES}
    out["bytes of weights"] = {dtype: scorer.weight_bytes() for dtype, scorer in scorers.items()}
    return out


def speed(run: Path) -> Measured:
    """Return tokens per second of decoding, and the ratios to bfloat16, by batch."""
    words = [sys.executable, str(HERE / "rorqual_side.py"), str(run), "--backend", "native", "--dtype"]
    out: Measured = {"prompt": PROMPT, "new": NEW, "threads": 1}
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asked = [
            stack.enter_context(running(Side(dtype, [*words, dtype], dtype), 1, logs / dtype)) for dtype in DTYPES[:3]
        ]
        for batch in BATCHES:
            found = measure(asked, batch, PROMPT, NEW, ROUNDS, math.inf)
            rows = {dtype: [rates(got) for got in values] for dtype, values in found.items()}
            sides = {dtype: summary([row["decode_per_s"] for row in values]) for dtype, values in rows.items()}
            ratios = {f"{dtype} / bfloat16": ratio(rows[dtype], rows["bfloat16"]) for dtype in DTYPES[:2]}
            out[f"batch {batch}"] = {"decode_per_s": sides, **ratios}
            print(f"batch {batch}: {out[f'batch {batch}']}", flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--window", type=int, default=256, help="predicted tokens of a window")
    parser.add_argument("--result", type=Path, default=RESULT)
    a = parser.parse_args()
    torch.set_num_threads(1)
    document: Measured = {"made by": made_by({a.run: a.run.name, a.text: a.text.name})}
    document["speed"] = speed(a.run)
    document["quality"] = quality(a.run, a.text.read_text(encoding="utf-8"), a.windows, a.window)
    write_json(a.result, document)


if __name__ == "__main__":
    main()
