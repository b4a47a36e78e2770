"""The reference model of GRPO's KL term and of DPO: a frozen model that scores the trained tokens."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.data.tokenizer import Tokenizer
from rorqual.dist.ranks import current_ranks
from rorqual.engine.score import ROWS
from rorqual.model.adapter import fingerprint
from rorqual.model.decoder import Decoder
from rorqual.model.load.run_directory import load_run
from rorqual.ops.backends import Backend
from rorqual.ops.losses import mask_tokens_not_kept, token_logprobs
from rorqual.train.batch import TrainBatch

R = TypeVar("R")


def load_frozen(run: RunDir, device: str, ops: Backend) -> Decoder:
    """Load the newest checkpoint of `run` as a frozen fp32 model on backend `ops`.

    Raises ConfigError if `ops` cannot run the model.
    """
    model = load_run(run, device=device).requires_grad_(False)
    if (reason := ops.supports(torch.device(device), torch.float32, model)) is not None:
        raise ConfigError(
            f"backend={ops.name} cannot run this model: {reason}", where=str(run.path), remedy="Use another backend."
        )
    return ops.bind(model)


def map_rows(batch: TrainBatch, score: Callable[[TrainBatch], R], threads: int) -> list[R]:
    """Return `score(part)` for each part of the batch, in order. Each part has `ROWS` rows, whatever the number of threads and
    processes, which share the work."""
    parts = batch.split(-(-len(batch.tokens) // ROWS))
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return current_ranks().map(lambda share: list(pool.map(score, share)), parts)


class ReferenceModel:
    """A reference model: the newest checkpoint of the run directory `path`, in fp32 on the device of the `trained` model.

    The reference model's own routers choose its experts. The reference distribution is computed like the sampler's
    distribution: at `temperature`, over the tokens that top-p and top-k allowed. `sha256` is the fingerprint of the checkpoint.

    Raises ConfigError if the reference's tokenizer is not `tokenizer`, the trained model's, or if the vocabulary sizes differ.
    """

    def __init__(self, path: str, trained: Decoder, tokenizer: Tokenizer, *, temperature: float, threads: int) -> None:
        run, vocab = RunDir(Path(path)), trained.config.vocab_size
        self.device = str(trained.embed_tokens.weight.device)
        self.model, self.sha256 = load_frozen(run, self.device, trained.ops), fingerprint(run.checkpoint())
        if Tokenizer.load(run.tokenizer_file) != tokenizer or self.model.config.vocab_size != vocab:
            raise ConfigError(
                f"the reference's tokenizer ({self.model.config.vocab_size} tokens) differs from the trained model's ({vocab}"
                " tokens), so its token ids stand for other tokens",
                where="source.reference",
                remedy="Use a reference with the same tokenizer, such as the run that training starts from.",
            )
        self.temperature, self.threads = temperature, threads

    def logprobs(self, batch: TrainBatch) -> Tensor:
        """Return the reference model's log-probabilities of the targets [rows, seq]. At untrained positions, the returned
        log-probabilities are 0."""
        return torch.cat(map_rows(batch, self._target_logprobs, self.threads)).to(batch.tokens.device)

    @torch.no_grad()
    def _target_logprobs(self, part: TrainBatch) -> Tensor:
        batch = part.to(self.device)
        at = batch.loss_mask.nonzero(as_tuple=True)
        output = self.model(batch.tokens, batch.positions, segments=batch.segments)
        logits = self.model.logits(output.hidden[at]) / self.temperature
        if batch.kept is not None:
            logits = mask_tokens_not_kept(logits, batch.kept[at])
        return torch.zeros_like(batch.loss_mask).index_put(at, token_logprobs(logits, batch.targets[at]))
