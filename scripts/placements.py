"""Look for a row whose bits depend on its place, in products that `torch-invariant` promises to be batch-invariant.

    python scripts/placements.py --shapes 200 --placements 2000

A shape is a kind of product, a width, a number of outputs, a type and a number of threads, drawn at random, with many narrow and uneven
ones. Each placement takes a random number of random rows in random order, pads them as the engine does, and compares the bits of each
with those of the row beside all others. The result is written to docs/results/placements.json.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import torch

from rorqual.core.records import write_json
from rorqual.ops.backends.torch_invariant import CHOICES, _is_invariant, _product_function
from rorqual.ops.row_limits import RowLimits

RESULT = Path(__file__).parent.parent / "docs" / "results" / "placements.json"
KINDS = ("map", "packed", "transposed", "straight")
ROWS = 96


def random_shape(rng: random.Random) -> tuple[Any, ...]:
    width = rng.choice(
        [
            rng.randint(2, 40),
            rng.randint(2, 40),
            4 * rng.randint(1, 64),
            rng.randint(41, 300),
            rng.choice([512, 576, 768, 1024]),
        ]
    )
    out = rng.choice([rng.randint(1, 12), rng.randint(1, 12), rng.randint(13, 80), rng.choice([96, 128, 256, 512])])
    dtype = rng.choice([torch.float32, torch.float32, torch.bfloat16])
    return (
        rng.choice(KINDS if dtype == torch.bfloat16 else KINDS[:1] + KINDS[2:]),
        width,
        out,
        dtype,
        rng.choice([1, 2]),
    )


def padded(x: torch.Tensor, least: int) -> torch.Tensor:
    """Repeat the last row until the number of rows is a multiple of `least`."""
    return torch.cat((x, x[-1:].expand(-len(x) % least, -1)))


def broken(shape: tuple[Any, ...], rows: RowLimits, placements: int, rng: random.Random) -> int:
    """Return how many of the placements change the bits of a row."""
    kind, width, out, dtype, threads = shape
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    matrix = torch.randn(out, width, generator=generator).to(dtype)
    x = torch.randn(ROWS, width, generator=generator).to(dtype)
    product = _product_function(kind, matrix, rows.most)
    torch.set_num_threads(threads)
    whole, changed = product(x), 0
    for _ in range(placements):
        place = torch.tensor(rng.sample(range(ROWS), rng.randint(1, ROWS)))
        changed += not torch.equal(product(padded(x[place], rows.least))[: len(place)], whole[place])
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=200)
    parser.add_argument("--placements", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng, promised, wrong, refused = random.Random(given.seed), 0, [], 0
    with torch.no_grad():
        while promised < given.shapes:
            shape = random_shape(rng)
            rows = next((rows for rows in CHOICES if _is_invariant(*shape[:4], rows, shape[4])), None)
            if rows is None:
                refused += 1
                continue
            promised += 1
            if changed := broken(shape, rows, given.placements, rng):
                wrong.append({"shape": [str(part) for part in shape], "rows": vars(rows), "changed": changed})
                print("broken:", wrong[-1], flush=True)
            if promised % 20 == 0:
                print(f"{promised} of {given.shapes} shapes, {len(wrong)} broken, {refused} not promised", flush=True)
    command = (
        f"python scripts/placements.py --shapes {given.shapes} --placements {given.placements} --seed {given.seed}"
    )
    machine = torch.backends.cpu.get_cpu_capability()
    made = {"command": command, "torch": torch.__version__, "capability": machine, "shapes": promised}
    write_json(RESULT, made | {"not_promised": refused, "broken": wrong})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
