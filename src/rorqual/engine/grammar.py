"""Replies that match a grammar: a JSON schema, a regular expression, a choice, any JSON object. By llguidance, an optional package.

A grammar is compiled once (`Grammars.compile`, beside the loop: it takes milliseconds, at most `COMPILE_SECONDS`), and every sample
walks a copy of it: before each draw a mask of the tokens that may follow, after it the token that was drawn. What users send is
limited before and while it is compiled; what cannot be enforced is refused by name rather than passed over. Nothing is ever fetched.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from rorqual.core.errors import ConfigError, DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.grammar_calls import Spelling, blame, read_calls
from rorqual.engine.grammar_queue import Build, Turns
from rorqual.engine.grammar_refusal import KINDS, NOTHING, first_line, refusal
from rorqual.engine.grammar_text import options_of, written
from rorqual.engine.request import Grammar

Bools = npt.NDArray[np.bool_]

COMPILE_SECONDS = 5.0
CACHED = 64
WORKERS = 2
LIMITS: Mapping[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""About 20 ms to build a lexer, 15 ms for a mask, and 30 MB of states."""
REHEARSED = 4
"""Tokens of a first walk: some grammars fail only where they are first used."""


class Constraint(Protocol):
    """What the next token of one sample may be."""

    def mask(self) -> Bools | None:
        """The tokens that may follow [vocab], stop ids among them where the reply may end; None: nothing is masked."""

    def accept(self, token: int) -> None:
        """`token`, which the mask allowed, was drawn."""

    @property
    def done(self) -> bool:
        """The reply is complete and nothing can follow it but a stop id."""

    @property
    def error(self) -> str:
        """Why the grammar gave up, where a limit was reached while it ran: the reply does not match it, and only a stop id may follow."""

    def copy(self) -> Constraint:
        """An independent one in the same state."""


class Matched:
    """A reply that matches a grammar from its first token on."""

    def __init__(self, matcher: Any, lexicon: Lexicon) -> None:
        self._matcher, self._lexicon = matcher, lexicon
        self.done, self.error = False, ""

    def mask(self) -> Bools:
        lexicon = self._lexicon
        if self.done:
            return lexicon.stops
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=lexicon.vocab_size, bitorder="little").view(np.bool_) & lexicon.usable
        if self._matcher.is_error() or not allowed.any():
            self._give_up()
            return lexicon.stops
        return allowed

    def accept(self, token: int) -> None:
        if self.done or self._lexicon.stops[token]:
            self.done = True
        elif not self._matcher.consume_token(token):
            self._give_up()
        else:
            self.done = bool(self._matcher.is_stopped())

    def _give_up(self) -> None:
        self.error, self.done = first_line(self._matcher.get_error()) or NOTHING, True

    def copy(self) -> Matched:
        other = Matched(self._matcher.deep_copy(), self._lexicon)
        other.done, other.error = self.done, self.error
        return other


@dataclass(frozen=True)
class Thought:
    """How the reply of a model that thinks begins: with a thought, up to `end_ids` (of `</think>`) one after another or, where a family
    has no token for it, to where the text holds `end_text`.

    `open_ids`: of `<think>`, where the model opens the thought itself or answers at once. `gap_ids`: what a format writes between
    thought and answer, and does not count as either; it may be left out, or broken off.
    """

    end_ids: Sequence[int] = ()
    end_text: str = ""
    open_ids: Sequence[int] = ()
    gap_ids: Sequence[int] = ()


class Delayed:
    """A reply that may think first: until its thought ended, everything is allowed but to end the reply; from there on `constraint` holds.
    So the reply either matches or is cut off by its length."""

    def __init__(self, constraint: Constraint, thought: Thought, lexicon: Lexicon) -> None:
        if not thought.end_ids and not thought.end_text:
            raise ValueError("a thought without an end cannot be waited for")
        self._constraint, self._thought, self._lexicon = constraint, thought, lexicon
        self._last: tuple[int, ...] = ()
        self._gap = 0  # of `gap_ids`, drawn
        self._state: Literal["opening", "thinking", "gap", "bound"] = "opening" if thought.open_ids else "thinking"

    def mask(self) -> Bools | None:
        if self._state == "bound":
            return self._constraint.mask()
        if self._state == "thinking":
            return self._lexicon.not_stops
        allowed = self._constraint.mask()
        if allowed is None:
            return None
        allowed = allowed.copy()
        allowed[[*self._thought.open_ids, *self._thought.end_ids[:1]] if self._state == "opening" else self._next()] = (
            True
        )
        return allowed

    def accept(self, token: int) -> None:
        if self._state == "opening":
            self._open(token)
        elif self._state == "thinking":
            self._think(token)
        elif self._state == "gap" and [token] == self._next():
            self._gap += 1
        else:
            self._state = "bound"
            self._constraint.accept(token)

    def _open(self, token: int) -> None:
        if token in self._thought.open_ids:
            self._state = "thinking"
        elif token in self._thought.end_ids[:1]:  # a thought closed before it was opened is none
            self._state = "thinking"
            self._think(token)
        else:
            self._state = "bound"
            self._constraint.accept(token)

    def _think(self, token: int) -> None:
        ids, text = tuple(self._thought.end_ids), self._thought.end_text
        # A token holds a byte at least, so that the mark lies within as many tokens as it has bytes.
        self._last = (*self._last, token)[-(len(ids) or len(text.encode()) + 1) :]
        if self._last == ids or (text and text in self._lexicon.decode(self._last)):
            self._state = "gap"

    def _next(self) -> list[int]:
        return list(self._thought.gap_ids[self._gap : self._gap + 1])

    @property
    def done(self) -> bool:
        return self._state == "bound" and self._constraint.done

    @property
    def error(self) -> str:
        return self._constraint.error

    def copy(self) -> Delayed:
        other = Delayed(self._constraint.copy(), self._thought, self._lexicon)
        other._last, other._gap, other._state = self._last, self._gap, self._state
        return other


@dataclass(frozen=True)
class Lexicon:
    """Of each id [vocab]: whether it ends a reply, its contrary, and whether a reply that matches a grammar may hold it.
    `decode`: the text of ids."""

    stops: Bools
    not_stops: Bools
    usable: Bools
    decode: Callable[[Sequence[int]], str]

    @property
    def vocab_size(self) -> int:
        return len(self.stops)


class Avoiding:
    """A reply that matches, and holds none of the texts that `spelling` leaves unsaid."""

    def __init__(self, constraint: Constraint, spelling: Spelling, lexicon: Lexicon) -> None:
        self._constraint, self._spelling, self._lexicon = constraint, spelling, lexicon
        self._tail, self._error = b"", ""

    def mask(self) -> Bools | None:
        allowed = self._lexicon.stops if self._error else self._constraint.mask()
        if allowed is None or self.done:
            return allowed
        allowed = allowed & ~self._spelling.closing(self._tail)
        if not allowed.any():
            self._error = NOTHING
            return self._lexicon.stops
        return allowed

    def accept(self, token: int) -> None:
        if not self._error:
            self._constraint.accept(token)
            self._tail = b"" if self._lexicon.stops[token] else self._spelling.tail(self._tail, token)

    @property
    def done(self) -> bool:
        return bool(self._error) or self._constraint.done

    @property
    def error(self) -> str:
        return self._error or self._constraint.error

    def copy(self) -> Avoiding:
        other = Avoiding(self._constraint.copy(), self._spelling, self._lexicon)
        other._tail, other._error = self._tail, self._error
        return other


class Compiled:
    """A grammar, ready: each sample starts one `Constraint`. `spelling`: of calls, where the grammar is of such."""

    def __init__(self, matcher: Any, lexicon: Lexicon, spelling: Spelling | None = None) -> None:
        self._matcher, self._lexicon, self._spelling = matcher, lexicon, spelling
        self._lock = threading.Lock()

    def start(self, reply: Sequence[int] = (), thought: Thought | None = None) -> Constraint:
        """For a sample that has drawn `reply` so far; `thought`: how its thought ends, where it may think."""
        with self._lock:
            constraint: Constraint = Matched(self._matcher.deep_copy(), self._lexicon)
        if self._spelling is not None and self._spelling.unsaid:
            constraint = Avoiding(constraint, self._spelling, self._lexicon)
        if thought is not None:
            constraint = Delayed(constraint, thought, self._lexicon)
        for token in reply:
            constraint.accept(token)
        return constraint


class Grammars:
    """Compiles grammars over one tokenizer, in threads of its own, and keeps the last `CACHED`.

    `vocab_size`: ids that the model can give; `stop_ids`: those that end a reply. Special tokens are never part of a reply that matches,
    but for the marks of calls. `spelling`: how calls are written, for grammars of that kind.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int], spelling: Spelling | None = None
    ) -> None:
        self._spelling = spelling
        self._tokenizer, self._vocab_size, self._stop_ids = tokenizer, vocab_size, sorted(set(stop_ids))
        self._known: WeakValueDictionary[Grammar, Build[Compiled]] = (
            WeakValueDictionary()
        )  # as long as somebody holds it
        self._kept: OrderedDict[Grammar, Build[Compiled]] = OrderedDict()
        self._lock, self._building = threading.Lock(), threading.Lock()
        self._turns: Turns[Compiled] = Turns(WORKERS, "grammar")

    def compile(self, grammar: Grammar, *, where: str = "grammar", seconds: float = COMPILE_SECONDS) -> Compiled:
        """Wait for `submit`; a `DataError` at `where` says what of the grammar cannot be read or enforced, or that it took more than
        `seconds` from its turn on."""
        try:
            return self.submit(grammar).within(seconds)
        except Late:
            raise DataError(
                f"the {KINDS[grammar.kind]} was not compiled within {seconds:g} s",
                where=where,
                remedy="Make it simpler: fewer choices, smaller repetitions, less nesting.",
            ) from None
        except DataError as error:
            raise DataError(error.what, where=where, remedy=error.remedy) from None

    def submit(self, grammar: Grammar, tenant: str = "") -> Build[Compiled]:
        """Compile beside the caller, when it is `tenant`'s turn; the future raises what `compile` raises. As long as it is held, `compile`
        finds what it compiled, however many others came in between. Whoever gave it up may cancel it, if nobody else waits for it."""
        with self._lock:
            build = self._known.get(grammar)
            if build is None or build.cancelled() or (build.done() and build.exception()):
                build = self._known[grammar] = Build(lambda: self._kept_build(grammar))
        if build.done():
            self._keep(grammar, build)
        else:
            self._turns.add(tenant, build)
        return build

    def _kept_build(self, grammar: Grammar) -> Compiled:
        compiled = self._build(grammar)
        self._keep(grammar, self._known[grammar])
        return compiled

    def _keep(self, grammar: Grammar, build: Build[Compiled]) -> None:
        with self._lock:
            self._kept[grammar] = build
            self._kept.move_to_end(grammar)
            while len(self._kept) > CACHED:
                self._kept.popitem(last=False)

    def close(self) -> None:
        self._turns.close()

    @cached_property
    def lexicon(self) -> Lexicon:
        ids = range(self._vocab_size)
        stops = np.zeros(self._vocab_size, np.bool_)
        stops[self._stop_ids] = True
        special = np.array([self._tokenizer.is_special(id_) for id_ in ids], np.bool_)
        stops.flags.writeable = False
        return Lexicon(stops, ~stops, ~special | stops, self._tokenizer.decode)

    @cached_property
    def _library(self) -> Any:
        try:
            import llguidance
        except ImportError:
            raise ConfigError(
                "grammars need llguidance, which is not installed",
                where="engine",
                remedy='pip install "rorqual[serve]"',
            ) from None
        return llguidance

    @cached_property
    def _vocabulary(self) -> Any:
        """llguidance's tokenizer. Added tokens are special to it too, or a grammar's text could be written by one (`<think>` of Qwen3)."""
        data = json.loads(self._tokenizer.source)
        data["added_tokens"] = [token | {"special": True} for token in data["added_tokens"]]
        data |= {"truncation": None, "padding": None}
        size = max(self._vocab_size, self._tokenizer.vocab_size)
        return self._library.LLTokenizer(json.dumps(data), n_vocab=size, eos_token=self._stop_ids)

    def _build(self, grammar: Grammar) -> Compiled:
        with self._building:  # once, by the first
            library, lexicon, _ = self._library, self.lexicon, self._vocabulary
        if grammar.kind != "calls":
            return self._compiled(grammar, written(library, grammar), lexicon)
        if self._spelling is None:
            raise DataError("calls of tools need a chat format that writes them", remedy="Load a run that has one.")
        calls = read_calls(grammar.source)
        for function in calls.functions:  # alone, so that what is refused has a name
            try:
                self._build(Grammar("json_schema", function.schema))
            except DataError as error:
                raise blame(function.name, error) from None
        if calls.answer is not None:
            self._build(Grammar("json_schema", calls.answer))
        self._spelling.warm()
        usable = lexicon.usable.copy()
        usable[self._spelling.marks] = True
        options = options_of(*calls.schemas)
        text = str(library.LLMatcher.grammar_from_lark(self._spelling.lark(calls, options)))
        return self._compiled(grammar, text, replace(lexicon, usable=usable), self._spelling)

    def _compiled(self, grammar: Grammar, text: str, lexicon: Lexicon, spelling: Spelling | None = None) -> Compiled:
        limits = self._library.LLParserLimits(**LIMITS)
        matcher = self._library.LLMatcher(self._vocabulary, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise refusal(grammar, matcher.get_error())
        compiled = Compiled(matcher, lexicon, spelling)
        _rehearse(grammar, compiled)
        return compiled


def _rehearse(grammar: Grammar, compiled: Compiled) -> None:
    """Walk its first tokens: a grammar that nothing matches, or that breaks a limit where it is first used, is refused now."""
    constraint = compiled.start()
    for _ in range(REHEARSED):
        mask = constraint.mask()
        if constraint.error:
            raise refusal(grammar, constraint.error)
        if mask is None or constraint.done:
            return
        constraint.accept(int(mask.argmax()))
