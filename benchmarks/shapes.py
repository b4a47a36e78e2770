"""Tune the arms of `rorqual lab moe-vs-dense`, `latent-vs-full` and `mtp`, on seeds and a split that do not count as evidence.

python benchmarks/shapes.py speed --out DIR     core-seconds per step, arms in alternation
python benchmarks/shapes.py rates --out DIR     loss on the dev split for each factor on the learning rates
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch

from rorqual.core.records import RunDir
from rorqual.lab.job import run_cost
from rorqual.lab.shapes import ARMS, DENSE_FLOPS, DEV_SEEDS, DOCUMENTS, FULL, MOE, MTP, held_out_losses, shape_run
from rorqual.train.loop import fit

SHAPES = (MOE, DENSE_FLOPS, FULL, MTP)
"""The arms that differ in more than the number of steps."""
FACTORS = (0.25, 0.5, 1.0, 2.0)


def speed(out: Path, rounds: int = 6, share: float = 0.1) -> None:
    """Time short trainings in alternation, so that other load affects all arms equally. The first steps do not count."""
    spent: dict[str, list[float]] = {name: [] for name in SHAPES}
    for turn in range(rounds):
        for name in SHAPES:
            run = RunDir(out / f"{name}-{turn}")
            fit(shape_run(name, DEV_SEEDS[0] + turn, share), run, threads=1, quiet=True)
            spent[name].append(statistics.median([r["core_seconds"] for r in run.metrics()][5:]))
        print(turn, "  ".join(f"{name} {spent[name][-1]:.4f}" for name in SHAPES), flush=True)
    for name in SHAPES:
        ratios = [a / b for a, b in zip(spent[name], spent[MOE], strict=True)]
        print(
            f"{name:20} {statistics.median(spent[name]):.4f} s/step, {statistics.median(ratios):.3f} of {MOE}'s",
            ratios,
        )


def rates(out: Path, names: list[str], seeds: list[int]) -> None:
    """Train each arm fully with each learning-rate factor, and print its dev loss."""
    for seed in seeds:
        for name in names:
            for factor in FACTORS:
                run = RunDir(out / f"seed-{seed}" / f"{name}-{factor:g}")
                fit(shape_run(name, seed, factor=factor), run, threads=1, quiet=True)
                losses = held_out_losses(run.path.parent, name=run.path.name, seed=seed, count=DOCUMENTS, split="dev")
                took = run_cost(run).core_seconds
                print(
                    f"{seed} {name:20} x {factor:<4g} {ARMS[name].steps} steps, {took:.1f} core-s, {np.mean(losses):.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "rates"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=list(SHAPES), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(DEV_SEEDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    speed(given.out) if given.what == "speed" else rates(given.out, given.arms, given.seeds)
