"""Find the row counts at which a matrix product gives a row the same bits as among 1,024 rows on this CPU (see docs/explanation/engine.md).

    python benchmarks/rows.py --threads 1

For each type, width, output size and kind of product, the benchmark groups row counts by the bits of the first row. The inputs have
sums that cancel (`ops.rows.cancelling`). Shapes with a single group are not listed. Nothing is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.ops.prepacked import prepack, prepacked_linear
from rorqual.ops.row_limits import cancelling_rows

COUNTS = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    12,
    15,
    16,
    17,
    24,
    31,
    32,
    33,
    48,
    49,
    63,
    64,
    65,
    96,
    128,
    192,
    256,
    384,
    512,
    1024,
)


def classes(product: Callable[[Tensor], Tensor], x: Tensor) -> list[list[int]]:
    """Group the row counts that give the first row the same bits."""
    found: dict[bytes, list[int]] = {}
    for count in COUNTS:
        first = product(x[:count].contiguous())[0].float().numpy().tobytes()
        found.setdefault(first, []).append(count)
    return list(found.values())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    for dtype in (torch.float32, torch.bfloat16):
        for width in (16, 32, 64, 96, 128, 256, 512, 576, 1024, 1536):
            for out in (48, 64, 192, 576, 1536):
                x, weight = cancelling_rows(max(COUNTS), out, width, dtype)
                opaque = prepack(weight)
                kinds: dict[str, Callable[[Tensor], Tensor]] = {
                    "as it lies": lambda rows, w=weight: F.linear(rows, w),
                    "laid out": lambda rows, o=opaque: prepacked_linear(rows, o),
                    "batched": lambda rows, w=weight: torch.bmm(rows[None], w.t()[None])[0],
                }
                for kind, product in kinds.items():
                    found = classes(product, x)
                    if len(found) > 1:
                        print(f"{str(dtype)[6:]}, {width} columns, {out} outputs, {kind}: {found}", flush=True)


if __name__ == "__main__":
    main()
