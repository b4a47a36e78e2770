"""The inputs and outputs of an engine step, which a backend may compute with one fused function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rorqual.ops.backends.attention import AttentionPlan
from rorqual.ops.sampling import Ints, SamplerOutput, SamplingMetadata

Bools = npt.NDArray[np.bool_]


class StepPools(Protocol):
    """The KV cache of an engine step: the attention plan, and the block pools of each attention module by part name."""

    plan: AttentionPlan

    @property
    def pools(self) -> Sequence[Mapping[str, Tensor]]: ...


@dataclass(frozen=True)
class StepInput:
    """The input of a forward pass over all scheduled tokens, which are concatenated.

    - `ids` and `positions` [1, tokens]: the token ids and the token positions.
    - `embeds` [1, tokens, hidden]: replaces the embeddings of `ids` if `embeds` is not None.
    - `cache`: the `Cache` that the forward pass writes to and reads from.
    - `last` [rows]: for each row to sample, the index of the token whose logits are sampled from.
    - `sampling`: the sampling inputs, or None if no row samples.
    - `record_experts`: True if the caller reads `StepOutput.experts`.

    The last tokens may be padding tokens. Padding tokens are copies of the first tokens and have the cache slot
    `ops.backends.attention.PAD`.
    """

    ids: Tensor
    positions: Tensor
    cache: StepPools
    last: Tensor
    sampling: SamplingMetadata | None
    embeds: Tensor | None = None
    record_experts: bool = True


@dataclass(frozen=True)
class StepOutput:
    """The output of an engine step.

    - `hidden` [tokens, hidden]: the hidden states after the final norm. Prompt log-probabilities are computed from `hidden`.
    - `experts` [tokens, routers, k]: the chosen experts, in the order of `DecoderOutput.routing`, or None for models without routing.
    - `sampled`: the sampled tokens, one per row, or None if `StepInput.sampling` is None.
    """

    hidden: Tensor
    experts: Tensor | None
    sampled: SamplerOutput | None


class StepFunction(Protocol):
    """A function that runs engine steps of one model.

    The engine compiles a new `StepFunction` before a call if weights have changed in place, as in training.
    """

    def __call__(self, step: StepInput, /) -> StepOutput: ...


@runtime_checkable
class DecodingFunction(StepFunction, Protocol):
    """A function that also runs several decoding steps in one call."""

    def decode(self, step: StepInput, stops: Ints, ignores_stops: Bools, /) -> StepOutput:
        """Run decoding steps of all rows, at most as many as `step` has positions for, and return when a row has ended.

        Each row has one token in each step. `step.ids` [1, rows] are the tokens of the first step. All else has the rows of all
        steps, one step after the other, as do the tensors of the output: `step.positions`, the cache slots, and
        `step.sampling.uniform`, whose settings neither truncate nor penalize. The tables of cache blocks cover all steps. A row
        ends with a token of `stops`, unless `ignores_stops` [rows], or with a log-probability that is not finite.
        """
        ...
