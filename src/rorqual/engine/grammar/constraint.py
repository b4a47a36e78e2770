"""Token constraints for samples whose reply must match a grammar."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from rorqual.engine.grammar.error_messages import clean_library_error
from rorqual.engine.grammar.trial_process import NOTHING

Bools = npt.NDArray[np.bool_]
MASK_SECONDS = 0.0005
"""CPU time in seconds that a token's mask may take on average. All requests wait for each mask. With llguidance, masks of typical
schemas take 0.05 ms."""
SPARE_SECONDS = 0.15
"""Maximum CPU time in seconds that a tenant's masks may take in addition to `MASK_SECONDS` each, because the first masks of a grammar
build the lexer's states."""
SPARE_SHARE = 0.05
"""Share of the elapsed time by which the CPU time of `SPARE_SECONDS` grows again."""
SLOW = f"its masks take more than {MASK_SECONDS * 1000} ms of CPU time on average"


class Constraint(Protocol):
    """Interface of an object that decides which tokens may come next in one sample."""

    def mask(self) -> Bools | None:
        """Return a mask [vocab] of the allowed tokens, including stop ids if the reply may end here.

        If all tokens are allowed, `mask` returns None.
        """

    def accept(self, token: int) -> None:
        """Advance the state of the constraint by a sampled token, which `mask` must allow."""

    @property
    def done(self) -> bool:
        """Whether the reply is a complete match of the constraint. Only a stop id may follow a complete reply."""

    @property
    def error(self) -> str:
        """The reason why the grammar failed, for example because of a size limit, or "" if the grammar has not failed.

        After the grammar has failed, the reply cannot match the grammar and must end. If `validation` is not done, `error` waits
        for it.
        """

    @property
    def validation(self) -> Future[str] | None:
        """The future error of a complete reply that is validated in another process, or None without a validation."""


class Unconstrained:
    """The constraint of an answer that may have any tokens."""

    done, error, validation = False, "", None

    def mask(self) -> None:
        return None

    def accept(self, token: int) -> None:
        pass


@dataclass
class MaskBudget:
    """The CPU time that a tenant's masks may take in addition to `MASK_SECONDS` each."""

    spare: float = SPARE_SECONDS
    """Seconds that are left."""
    updated: float = field(default_factory=time.monotonic)

    def spend(self, seconds: float) -> None:
        """Subtract CPU time, and add what has grown since the last call."""
        now = time.monotonic()
        self.spare = min(SPARE_SECONDS, self.spare + (now - self.updated) * SPARE_SHARE) - seconds
        self.updated = now


@dataclass
class GrammarUsage:
    """What the replies to one compiled grammar share. `budget` is the budget of the grammar's tenant."""

    budget: MaskBudget
    excess: float = 0.0
    """CPU time in seconds that the grammar's masks took in addition to `MASK_SECONDS` each."""
    failed: bool = False
    """Whether the grammar failed during a reply. Later replies would fail too, because they share the lexer's states."""

    @property
    def too_slow(self) -> bool:
        """Whether the grammar's masks are slow and the tenant's budget is used up."""
        return self.excess > 0 and self.budget.spare < 0

    def spend(self, seconds: float) -> None:
        """Charge CPU time to the grammar and to its tenant."""
        self.excess += seconds
        self.budget.spend(seconds)


class MatcherConstraint:
    """The constraint of a reply that must match the grammar from its first token."""

    validation = None

    def __init__(self, matcher: Any, masks: VocabularyMasks, usage: GrammarUsage) -> None:
        self._matcher, self._masks, self._usage = matcher, masks, usage
        self.done, self.error = False, ""

    def mask(self) -> Bools:
        masks = self._masks
        if not self.done and self._usage.too_slow:
            self.error, self.done = SLOW, True
        if self.done:
            return masks.stops
        began = time.thread_time()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._usage.spend(time.thread_time() - began - MASK_SECONDS)
        allowed = np.unpackbits(bits, count=masks.vocab_size, bitorder="little").view(np.bool_) & masks.usable
        if self._matcher.is_error() or not allowed.any():
            self._mark_failed()
            return masks.stops
        return allowed

    def accept(self, token: int) -> None:
        began = time.thread_time()
        if self.done or self._masks.stops[token]:
            self.done = True
        elif not self._matcher.consume_token(token):
            self._mark_failed()
        else:
            self.done = bool(self._matcher.is_stopped())
        self._usage.spend(time.thread_time() - began)

    def _mark_failed(self) -> None:
        self.error, self.done = clean_library_error(self._matcher.get_error()) or NOTHING, True
        self._usage.failed = True


@dataclass(frozen=True)
class ReasoningFormat:
    """Token ids and text that delimit the reasoning at the start of a reply."""

    end_ids: Sequence[int] = ()
    """Token ids of the tag that ends the reasoning (`</think>`)."""
    end_text: str = ""
    """Text that ends the reasoning, if the text of `</think>` may consist of ordinary tokens."""
    open_ids: Sequence[int] = ()
    """Token ids of `<think>`, if the model may either start to think or answer directly.

    If the reply starts inside the reasoning, `open_ids` is empty.
    """
    gap_ids: Sequence[int] = ()
    """Token ids of the separator between reasoning and answer.

    The model may omit the separator between reasoning and answer, or write only the beginning of the separator.
    """
    budget: int | None = None
    """Maximum number of tokens of reasoning. After `budget` tokens of reasoning, only the tokens of `closing_ids` may follow,
    in their order."""
    closing_ids: Sequence[int] = ()
    """Token ids that end the reasoning after `budget` tokens of reasoning: `end_ids`, or the token ids of `end_text`."""
    may_stop: bool = False
    """Whether the reply may end within the reasoning."""


class ConstraintAfterThinking:
    """A constraint that applies only after the reasoning. Until the thinking budget is used up, the reasoning may contain any
    token except stop ids. If `ReasoningFormat.may_stop` is True, the reasoning may also contain stop ids.

    Without `may_stop`, a reply therefore either matches the constraint or is cut off by the reply's length limit.
    """

    def __init__(self, constraint: Constraint, thought: ReasoningFormat, masks: VocabularyMasks) -> None:
        if not thought.end_ids and not thought.end_text:
            raise ValueError("a ReasoningFormat needs end_ids or end_text")
        self._constraint, self._thought, self._masks = constraint, thought, masks
        self._last: tuple[int, ...] = ()
        self._gap = 0  # number of tokens of `gap_ids` that were sampled so far
        self._thoughts = 0  # number of tokens of reasoning that were sampled so far
        self._state: Literal["opening", "thinking", "gap", "bound"] = "opening" if thought.open_ids else "thinking"

    def mask(self) -> Bools | None:
        if self._state == "bound":
            return self._constraint.mask()
        if self._state == "thinking":
            if self._forced_closing_token is not None:
                return self._masks.only_token(self._forced_closing_token)
            if self._thought.may_stop:
                return None
            return self._masks.not_stops
        allowed = self._constraint.mask()
        if allowed is None:
            return None
        allowed = allowed.copy()
        allowed[
            [*self._thought.open_ids, *self._thought.end_ids[:1]]
            if self._state == "opening"
            else self._next_separator_ids()
        ] = True
        return allowed

    def accept(self, token: int) -> None:
        if self._state == "opening":
            self._accept_opening_token(token)
        elif self._state == "thinking":
            self._accept_reasoning_token(token)
        elif self._state == "gap" and [token] == self._next_separator_ids():
            self._gap += 1
        else:
            self._state = "bound"
            self._constraint.accept(token)

    def _accept_opening_token(self, token: int) -> None:
        if token in self._thought.open_ids:
            self._state = "thinking"
        elif token in self._thought.end_ids[:1]:  # `</think>` without `<think>` means that the reasoning is empty
            self._state = "thinking"
            self._accept_reasoning_token(token)
        else:
            self._state = "bound"
            self._constraint.accept(token)

    @property
    def _forced_closing_token(self) -> int | None:
        """The token that must come next because the thinking budget is used up, or None while the thinking budget is not used
        up."""
        budget = self._thought.budget
        return None if budget is None or self._thoughts < budget else self._thought.closing_ids[self._thoughts - budget]

    def _accept_reasoning_token(self, token: int) -> None:
        self._thoughts += 1
        ids, text = tuple(self._thought.end_ids), self._thought.end_text
        # A token has at least one byte, so the end text has at most as many tokens as bytes.
        self._last = (*self._last, token)[-max(len(ids), len(text.encode()) + 1) :]
        if (ids and self._last[-len(ids) :] == ids) or (text and text in self._masks.decode(self._last)):
            self._state = "gap"

    def _next_separator_ids(self) -> list[int]:
        return list(self._thought.gap_ids[self._gap : self._gap + 1])

    @property
    def done(self) -> bool:
        return self._state == "bound" and self._constraint.done

    @property
    def error(self) -> str:
        return self._constraint.error

    @property
    def validation(self) -> Future[str] | None:
        return self._constraint.validation


@dataclass(frozen=True)
class VocabularyMasks:
    """Properties of each token id, as arrays [vocab]."""

    stops: Bools
    """Array [vocab] that is True for each token id that ends a reply."""
    not_stops: Bools
    usable: Bools
    """Array [vocab] that is True for each token id that may occur in a reply that matches a grammar."""
    decode: Callable[[Sequence[int]], str]
    """Decodes token ids to text."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids in the vocabulary."""
        return len(self.stops)

    @cached_property
    def not_starting_with_digit(self) -> Bools:
        """Array [vocab] that is True for each token id whose text does not begin with a digit."""
        return np.array([not self.decode((id_,))[:1].isdigit() for id_ in range(self.vocab_size)], np.bool_)

    def only_token(self, token: int) -> Bools:
        """Return the mask that allows only the token id `token`."""
        mask = np.zeros_like(self.stops)
        mask[token] = True
        return mask


class ValidatedConstraint:
    """A wrapper of a constraint that also validates the complete reply with `validate`, for keywords that the grammar
    cannot enforce."""

    def __init__(
        self, constraint: Constraint, validate: Callable[[Sequence[int]], Future[str]], masks: VocabularyMasks
    ) -> None:
        self._constraint, self._validate, self._masks = constraint, validate, masks
        self._reply = list[int]()
        self.validation: Future[str] | None = None

    def mask(self) -> Bools | None:
        return self._constraint.mask()

    def accept(self, token: int) -> None:
        self._constraint.accept(token)
        if not self._masks.stops[token]:
            self._reply.append(token)
        if self._constraint.done and not self._constraint.error and self.validation is None:
            self.validation = self._validate(self._reply)

    @property
    def done(self) -> bool:
        return self._constraint.done

    @property
    def error(self) -> str:
        return self._constraint.error or ("" if self.validation is None else self.validation.result())
