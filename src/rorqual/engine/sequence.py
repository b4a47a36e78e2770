"""One sample in the making, and what the hot loop needs of all that have a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rorqual.engine.embeds import Embeds
from rorqual.engine.grammar.constraint import Constraint
from rorqual.engine.prompt_scores import PromptScores
from rorqual.engine.request import SamplingParams

Ints = npt.NDArray[np.int64]


@dataclass(eq=False)
class Sequence:
    """One sample in the making.

    `key` identifies its random numbers; `limit` is the number of ids, prompt included, at which it ends. `tokens`: the prompt and, after a
    preemption, what was drawn before it. `num_computed_tokens`: how many of these are in the cache. `hit`: tokens of the prompt that the
    prefix cache served. `saved`: what the runner keeps of it while it is preempted. `halts`, given all its ids, says whether the newest token
    ends it; `halted`: it did. `constraint`: what the next token may be. `stale`: it ran when the weights changed. `scores`: of its prompt,
    where they are wanted. `barred`: tokens that may not be drawn before it has `min_tokens`. `embeds`: see `Request`.
    """

    request_id: int
    sample: int
    prompt: tuple[int, ...]
    params: SamplingParams
    key: int
    limit: int
    tenant: str = ""
    priority: int = 0
    reuse: bool = True
    arrival: int = 0
    slot: int = -1
    tokens: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    hit: int = -1
    blocks: list[int] = field(default_factory=list)
    num_cached_blocks: int = 0
    keys: list[bytes] = field(default_factory=list)
    followers: list[Sequence] = field(default_factory=list)
    saved: object = None
    halts: Callable[[list[int]], bool] | None = None
    halted: bool = False
    stale: bool = False
    constraint: Constraint | None = None
    scores: PromptScores | None = None
    barred: tuple[int, ...] = ()
    embeds: Embeds | None = None

    @property
    def prefill_key(self) -> tuple[object, ...]:
        """Equal for sequences that one prefill serves."""
        embeds = None if self.embeds is None else self.embeds.digest
        return self.tenant, tuple(self.tokens), embeds, None if self.scores is None else self.scores.top

    @property
    def rank(self) -> tuple[int, int]:
        """Who comes first: the higher priority, then the earlier arrival."""
        return (-self.priority, self.arrival)


@dataclass
class InputBatch:
    """What the hot loop needs of each row, as arrays [slots]; `position` is that of the next token to compute."""

    position: Ints
    limit: Ints
    slot: Ints
    key: npt.NDArray[np.uint64]
    ignore_eos: npt.NDArray[np.bool_]
    special: npt.NDArray[np.bool_]  # ends by more than the model's own tokens

    @classmethod
    def empty(cls, slots: int) -> InputBatch:
        position, limit, slot = (np.zeros(slots, np.int64) for _ in range(3))
        ignore_eos, special = (np.zeros(slots, np.bool_) for _ in range(2))
        return cls(position, limit, slot, np.zeros(slots, np.uint64), ignore_eos, special)

    def fill(self, row: int, sequence: Sequence) -> None:
        self.position[row], self.limit[row] = len(sequence.tokens) - 1, sequence.limit
        self.slot[row], self.key[row] = sequence.slot, sequence.key
        self.ignore_eos[row] = sequence.params.ignore_eos
        asked = sequence.params.stop or sequence.params.stop_token_ids or sequence.constraint
        self.special[row] = bool(asked)

    def move(self, to: Ints, from_: Ints) -> None:
        for array in vars(self).values():
            array[to] = array[from_]
