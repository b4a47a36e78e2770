"""The losses of the lightning indexer (DeepSeek-V3.2-Exp, section 2.1.1, eq. 3 and 4).

A softmax over positions turns a query's index scores into a distribution. The indexer is trained so that the distribution of
its index scores matches the attention weights averaged over heads. The loss is the KL divergence KL(attention || indexer). Only
the indexer receives the gradient of the KL loss.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from rorqual.core.config import Natural
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives.objective import LossTerm, Objective


class IndexerWarmup(Objective):
    """The KL loss over all positions, in nats per token and layer. Attention is dense while `IndexerWarmup` is used.

    `depth` is the number of MTP modules. If neither the MTP modules nor their indexers are trained, `depth` is 0. Combine
    `IndexerWarmup` with `tune.kind=indexer`, which freezes all weights outside the indexer, as V3.2's warm-up does.
    """

    kind: Literal["indexer_warmup"] = "indexer_warmup"
    depth: Natural = 0
    reads_hidden: ClassVar[bool] = False
    name: ClassVar[str] = "dense_index_kl"

    def recorded_tensors(self) -> frozenset[str]:
        return frozenset({self.name})

    def weight(self, batch: TrainBatch) -> float:
        return float((batch.segments >= 0).sum())

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        outputs = [output]
        if self.depth:
            outputs += model.predict_with_mtp(
                output.hidden.detach(), batch.tokens, batch.positions, batch.segments, record=self.recorded_tensors()
            )
        total, layers = output.hidden.new_zeros(()), 0
        for shift, out in enumerate(outputs):
            valid = batch.segments[:, : batch.segments.shape[1] - shift].flatten() >= 0
            for loss in out.recorded[self.name]:
                total, layers = total + loss[valid].sum(), layers + 1
        loss = total / layers
        return LossTerm(loss, {self.name: (float(loss.detach()), self.weight(batch))})


class IndexerSparse(IndexerWarmup):
    """The KL loss over the selected positions, in nats per token and layer.

    Combine this objective with an objective that trains the model, such as `next_token`. The model then learns to attend
    sparsely, while the indexer continues to match the model's attention.
    """

    kind: Literal["sparse"] = "sparse"  # type: ignore[assignment]
    name: ClassVar[str] = "index_kl"
