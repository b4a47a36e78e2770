"""An engine step as one function, which a backend may fuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rorqual.ops.backends.attention import Plan
from rorqual.ops.sampling import SamplerOutput, SamplingMetadata


class Pools(Protocol):
    """The cache of a step: the attention plan, and each attention's pools by part name."""

    plan: Plan

    @property
    def pools(self) -> Sequence[Mapping[str, Tensor]]: ...


@dataclass(frozen=True)
class StepInput:
    """One forward pass over the concatenated tokens of all scheduled sequences.

    - `ids` and `positions`: [1, tokens].
    - `embeds` [1, tokens, hidden]: replaces the embeddings of the ids, if given.
    - `cache`: a `Cache` of the model, which receives the tokens' rows.
    - `last` [rows]: the index of the token after which each row samples its next token.
    - `sampling`: the sampling inputs, or None if no row samples.
    - `record_experts`: True if the caller reads the output's experts.

    The last tokens of a step may be padding, copies of its first tokens (`ops.backends.attention.PAD`).
    """

    ids: Tensor
    positions: Tensor
    cache: Pools
    last: Tensor
    sampling: SamplingMetadata | None
    embeds: Tensor | None = None
    record_experts: bool = True


@dataclass(frozen=True)
class StepOutput:
    """The result of a step.

    - `hidden` [tokens, hidden]: normed, the input of the head. Prompt log-probabilities are computed from it.
    - `experts` [tokens, routers, k]: each token's experts, in the order of `Output.routing`, or None without routing.
    - `drawn`: one sampled token per row, or None if `StepInput.sampling` is None.
    """

    hidden: Tensor
    experts: Tensor | None
    drawn: SamplerOutput | None


class StepFunction(Protocol):
    """A function that runs steps of one model.

    It must read weights anew at every step, because training changes them. A backend that cannot do so must say so in
    `Backend.supports`.
    """

    def __call__(self, given: StepInput) -> StepOutput: ...
