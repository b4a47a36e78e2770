"""One rank of the peer of `scale.py`: torch's DistributedDataParallel trains the same model on rows of the same source.

    torchrun --nproc-per-node=2 benchmarks/scale_ddp.py OUT SIZE STEPS ROWS

OUT gets the tokens per second of each step. Each rank draws rows of its own seed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rorqual.data.chat import chat_format
from rorqual.model import Decoder, build
from rorqual.recipes import make_run
from rorqual.train.batch import TrainBatch
from rorqual.train.sources import SourceInputs
from rorqual.train.state import make_tokenizer


class Loss(nn.Module):
    """The sum of the objectives' losses of a batch, as one module, which DistributedDataParallel needs."""

    def __init__(self, model: Decoder, objectives: tuple) -> None:  # type: ignore[type-arg]
        super().__init__()
        self.model, self.objectives = model, objectives

    def forward(self, batch: TrainBatch) -> Tensor:
        output = self.model(batch.tokens, batch.positions, segments=batch.segments)
        terms = [(one, one.term(self.model, batch, output)) for one in self.objectives]
        return sum((one.coefficient * term.sum / one.weight(batch) for one, term in terms), torch.zeros(()))


def main() -> None:
    out, size, steps, rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run = make_run("sft", {"task": "families", "size": size, "steps": str(steps), "rows": rows})
    model = build(run.model, seed=run.seed)
    tokenizer = make_tokenizer(run)
    source = run.source.build(
        SourceInputs(model, tokenizer, chat_format(tokenizer, run.chat), run.seed + dist.get_rank(), 1)
    )
    model.train()
    wrapped = DistributedDataParallel(Loss(model, tuple(run.objectives)), find_unused_parameters=True)
    optimizer, speeds = torch.optim.AdamW(model.parameters(), lr=3e-4, foreach=True), []
    for step in range(steps):
        began = time.monotonic()
        (batch,) = source.step(step).batches
        optimizer.zero_grad()
        wrapped(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens = torch.tensor(batch.n_tokens)
        dist.all_reduce(tokens)
        speeds.append(int(tokens) / (time.monotonic() - began))
    if dist.get_rank() == 0:
        out.write_text(json.dumps(speeds), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
