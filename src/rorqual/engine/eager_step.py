"""An engine step for a backend without a fused step: run the model operation by operation, then sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rorqual.model import Decoder
from rorqual.ops.backends.step import StepInput, StepOutput


class EagerStep:
    """The `StepFunction` of a backend without a fused step: runs the model operation by operation."""

    def __init__(self, model: Decoder) -> None:
        self._model = model

    def __call__(self, given: StepInput) -> StepOutput:
        """Run the forward pass, compute the logits of the tokens `given.last`, and sample one token per row."""
        output = self._model(given.ids, given.positions, cache=given.cache, inputs_embeds=given.embeds)
        hidden, routing = output.hidden[0], output.routing
        recorded = routing and given.record_experts
        experts = torch.stack([one.indices for one in routing], dim=1) if recorded else None
        if given.sampling is None:
            return StepOutput(hidden, experts, None)
        drawn = self._model.ops.sample(logits_at_positions(self._model, hidden, given.last), given.sampling)
        return StepOutput(hidden, experts, drawn)


def logits_at_positions(model: Decoder, hidden: Tensor, places: Tensor) -> Tensor:
    """Return the logits [places, padded vocab] of the tokens at indices `places`, from hidden states [tokens, d].

    The backend decides how many padding rows and padding columns the logits have. Padding columns hold -inf. Padding rows are
    removed.
    """
    ops, count = model.ops, len(places)
    row_padding = -count % ops.rows.least
    index = torch.cat((places, places.new_zeros(row_padding))) if row_padding else places
    logits = model.logits(hidden.index_select(0, index))[:count]
    column_padding = -logits.shape[-1] % ops.lanes
    return F.pad(logits, (0, column_padding), value=-torch.inf) if column_padding else logits
