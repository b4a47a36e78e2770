"""A sequence that is being generated, and the per-row arrays of the running batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rorqual.engine.embeds import Embeds
from rorqual.engine.grammar.constraint import Constraint
from rorqual.engine.prompt_scores import PromptScores
from rorqual.engine.request import SamplingParams
from rorqual.ops.sampling import needs_history, truncates

Ints = npt.NDArray[np.int64]


@dataclass(eq=False)
class Sequence:
    """One sample that is being generated."""

    request_id: int
    sample: int
    prompt: tuple[int, ...]
    params: SamplingParams
    key: int
    """Key of the sequence's random numbers (`seeds.sample_key`)."""
    limit: int
    """Maximum number of tokens in the sequence, prompt and reply together."""
    tenant: str = ""
    priority: int = 0
    reuse: bool = True
    arrival: int = 0
    slot: int = -1
    """Index of the sequence's state in the runner, or -1 if the sequence has no slot."""
    tokens: list[int] = field(default_factory=list)
    """The tokens to prefill: the prompt, and the reply tokens that were sampled before a preemption."""
    num_computed_tokens: int = 0
    """Number of leading tokens of `tokens` whose keys and values are in the KV cache."""
    hit: int = -1
    """Number of prompt tokens that were found in the prefix cache, or -1 before the sequence is first admitted."""
    blocks: list[int] = field(default_factory=list)
    num_cached_blocks: int = 0
    keys: list[bytes] = field(default_factory=list)
    """Hash keys of the sequence's leading full blocks. The list of hash keys is extended on demand."""
    followers: list[Sequence] = field(default_factory=list)
    """Sequences that have the same tokens to prefill. The followers wait for the prefill of this sequence and then share the
    prefilled blocks."""
    saved: object = None
    """Per-token results that the runner restores after a preemption (`SequenceHistories.save`)."""
    is_stopped: Callable[[list[int]], bool] | None = None
    """Callable that takes all token ids of the sequence and returns whether a stop string ends the sequence."""
    halted: bool = False
    """Whether a stop token of the request, a stop string or the grammar ended the sequence."""
    stale: bool = False
    """Whether the weights changed while the sequence was running."""
    constraint: Constraint | None = None
    """The constraint, such as a grammar, that restricts the sequence's next token."""
    scores: PromptScores | None = None
    """Log-probabilities of the prompt tokens, if the request sets `prompt_logprobs`."""
    barred: tuple[int, ...] = ()
    """Ids of the stop tokens that are masked until the reply has `min_tokens` tokens."""
    embeds: Embeds | None = None
    adapter: str = ""
    """SHA-256 of the adapter that computes the sequence, or "" for the base model."""

    @property
    def prefill_key(self) -> tuple[object, ...]:
        """A key that is equal for sequences that can share one prefill."""
        embeds = None if self.embeds is None else self.embeds.digest
        return self.tenant, tuple(self.tokens), embeds, self.adapter, None if self.scores is None else self.scores.top


@dataclass
class InputBatch:
    """State of the running sequences, for the hot loop: arrays of length `slots`, in which entry i belongs to row i of
    the batch.

    `position` holds the position of each row's next token to compute.
    """

    position: Ints
    limit: Ints
    slot: Ints
    key: npt.NDArray[np.uint64]
    ignore_eos: npt.NDArray[np.bool_]
    special: npt.NDArray[np.bool_]  # the request has stop strings, stop tokens or a grammar
    plain: npt.NDArray[
        np.bool_
    ]  # the sampled token and the end of a row depend only on logits, random numbers and stop ids

    @classmethod
    def empty(cls, slots: int) -> InputBatch:
        """Return an `InputBatch` of zeroed arrays for `slots` rows."""
        position, limit, slot = (np.zeros(slots, np.int64) for _ in range(3))
        ignore_eos, special, plain = (np.zeros(slots, np.bool_) for _ in range(3))
        return cls(position, limit, slot, np.zeros(slots, np.uint64), ignore_eos, special, plain)

    def fill_row(self, row: int, sequence: Sequence) -> None:
        """Set row `row` of the batch to the state of a sequence that starts to decode."""
        self.position[row], self.limit[row] = len(sequence.tokens) - 1, sequence.limit
        self.slot[row], self.key[row] = sequence.slot, sequence.key
        self.ignore_eos[row] = sequence.params.ignore_eos
        params = sequence.params
        special = params.stop or params.stop_token_ids or sequence.constraint
        self.special[row] = bool(special)
        adjusts = needs_history(params) or params.logit_bias or truncates(params) or sequence.barred
        self.plain[row] = not (special or adjusts or params.top_logprobs)

    def move_rows(self, to: Ints, from_: Ints) -> None:
        """Copy the state in rows `from_` of the batch to rows `to`."""
        for array in vars(self).values():
            array[to] = array[from_]
