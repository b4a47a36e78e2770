"""A step of an engine as one function: what a backend may fuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rorqual.ops.backends.attention import Plan
from rorqual.ops.sampling import SamplerOutput, SamplingMetadata


class Pools(Protocol):
    """The cache of a step: how attention answers, and the pools of each attention of the model by the names of their parts."""

    plan: Plan

    @property
    def pools(self) -> Sequence[Mapping[str, Tensor]]: ...


@dataclass(frozen=True)
class StepInput:
    """One forward over the tokens of all scheduled sequences, laid side by side.

    ids and positions [1, tokens]; embeds [1, tokens, hidden], where given, are read instead of the embeddings of the ids. cache: it takes
    the tokens' rows, and is a `Cache` of the model. last [rows]: numbers of the tokens after which a row draws its next; sampling: what
    it draws by, None where no row draws. record_experts: whether the output's experts are read. The last tokens of a step may be copies of
    its first, which fill up (`ops.backends.attention.PAD`).
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
    """hidden [tokens, hidden]: normed, as the head reads it; log-probabilities of prompts come from it. experts [tokens, routers, k]: who
    served each token, by `Output.routing` (one `indices` for each router); None where nothing routes. drawn: a token for each row; None where
    `StepInput.sampling` is."""

    hidden: Tensor
    experts: Tensor | None
    drawn: SamplerOutput | None


class StepFunction(Protocol):
    """Runs steps of one model. It reads weights anew at every step, or says that it cannot (`Backend.supports`): training changes them."""

    def __call__(self, given: StepInput) -> StepOutput: ...
