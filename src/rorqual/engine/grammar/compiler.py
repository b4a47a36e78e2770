"""Compile grammars with the optional package llguidance. A grammar is a JSON schema, a regular expression, a choice, any
JSON object or tool calls.

`Grammars.compile` compiles a grammar once in a background thread. Compilation takes milliseconds. `Grammars.compile`
raises an error after `COMPILE_SECONDS`. Each sample has its own copy of the compiled grammar. A sample's copy masks
tokens before each sampling step, and advances its state with each sampled token.

The size of user-supplied grammars is limited before and during compilation. A keyword that can be neither enforced nor
validated is an error. External references are never downloaded.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as Late
from dataclasses import replace
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from rorqual.core.errors import ConfigError, DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.grammar.calls import CallsValidator, CallSyntax, blame, read_calls
from rorqual.engine.grammar.check import SchemaValidator
from rorqual.engine.grammar.constraint import Checked, Constraint, Delayed, ForbiddenTexts, Lexicon, Matched, Thought
from rorqual.engine.grammar.prune import loosened, pruned
from rorqual.engine.grammar.queue import CompileQueue, CompileTask
from rorqual.engine.grammar.refusal import KINDS, NOTHING, Unusable, refusal
from rorqual.engine.grammar.source import MAX_LOOSE, check_pattern, choice_pattern, parse_schema, rewrite
from rorqual.engine.request import Grammar

WHITESPACE = r"\n[ ]{0,16}|[ ]"
"""White space that is allowed between the tokens of a JSON text. The length of white space is limited, because a small
model may repeat spaces forever."""
JSON: Mapping[str, Any] = {"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False}
ESCAPES = 'nrbtf"\\'
"""Characters that may follow a backslash in a string. `u` is excluded, because the grammar would not recognise a
property name with a `\\u` escape. The value of this property could then violate the schema."""
CONTROL = re.compile(r"\\u00(?:[01]|7[fF])|\x7f")


def options_of(*schemas: str) -> dict[str, Any]:
    """Return llguidance's options for JSON. `\\u` escapes are allowed only if a schema contains a control character
    that cannot be written without a `\\u` escape."""
    return dict(JSON) if any(map(CONTROL.search, schemas)) else {**JSON, "json_allowed_escapes": ESCAPES}


def written(library: Any, grammar: Grammar) -> str:
    """Return a grammar of kind `json`, `choice` or `regex` in llguidance's format. Raises DataError if the grammar's
    source is invalid."""
    if grammar.kind == "json":
        return schema_text(library, {"type": "object"})
    pattern = choice_pattern(grammar.source) if grammar.kind == "choice" else check_pattern(grammar.source)
    return str(library.LLMatcher.grammar_from_regex(pattern))


def schema_text(library: Any, part: Mapping[str, Any]) -> str:
    """Return a schema from `grammar.source.rewrite` as a grammar in llguidance's format. Raises Unusable if llguidance
    rejects the schema."""
    text = json.dumps(part)
    try:
        return str(library.LLMatcher.grammar_from_json_schema(text, overrides=options_of(text)))
    except ValueError as error:  # raised, for example, if the schema has an integer of 400 digits
        raise Unusable(str(error)) from None


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
"""Limits for llguidance. The limits allow about 20 ms to build a lexer, 15 ms per mask, and 30 MB of states."""
REHEARSED = 4
"""Number of tokens to generate as a test after compilation, because some grammars fail only at their first use."""


class Compiled:
    """A compiled grammar. `start` returns a `Constraint` for one sample.

    `spelling` is set for grammars of tool calls. `schema` is the rewritten JSON schema that was compiled. `fault` takes
    the ids of a finished reply and returns its error or "". `fault` is set if the grammar cannot enforce the whole
    schema.
    """

    def __init__(
        self,
        matcher: Any,
        lexicon: Lexicon,
        *,
        spelling: CallSyntax | None = None,
        schema: Mapping[str, Any] | None = None,
        fault: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._matcher, self._lexicon, self._spelling = matcher, lexicon, spelling
        self.schema, self.fault = schema, fault
        self._lock = threading.Lock()

    def start(self, reply: Sequence[int] = (), thought: Thought | None = None) -> Constraint:
        """Return the constraint of a reply whose tokens so far are `reply`. Pass `thought` if the reply may start with
        reasoning."""
        with self._lock:
            constraint: Constraint = Matched(self._matcher.deep_copy(), self._lexicon)
        if self._spelling is not None and self._spelling.unsaid:
            constraint = ForbiddenTexts(constraint, self._spelling, self._lexicon)
        if self.fault is not None:
            constraint = Checked(constraint, self.fault, self._lexicon)
        if thought is not None:
            constraint = Delayed(constraint, thought, self._lexicon)
        for token in reply:
            constraint.accept(token)
        return constraint


class Grammars:
    """Compiles grammars for one tokenizer in background threads, and caches the `CACHED` most recently used grammars.

    `vocab_size` is the size of the model's vocabulary. `stop_ids` are the tokens that end a reply. A reply that matches
    a grammar contains no special tokens except those of tool calls. `spelling` is the syntax of tool calls, for
    grammars of kind `calls`.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int], spelling: CallSyntax | None = None
    ) -> None:
        self._spelling = spelling
        self._tokenizer, self._vocab_size, self._stop_ids = tokenizer, vocab_size, sorted(set(stop_ids))
        # All builds that a caller or `_kept` still references.
        self._known: WeakValueDictionary[Grammar, CompileTask[Compiled]] = WeakValueDictionary()
        self._kept: OrderedDict[Grammar, CompileTask[Compiled]] = OrderedDict()
        self._lock, self._building = threading.Lock(), threading.Lock()
        self._queue: CompileQueue[Compiled] = CompileQueue(WORKERS, "grammar")

    def compile(self, grammar: Grammar, *, where: str = "grammar", seconds: float = COMPILE_SECONDS) -> Compiled:
        """Compile a grammar and wait for the result.

        Raises DataError, with `where` as the location, if the grammar is invalid or cannot be enforced. Also raises
        DataError if compilation takes more than `seconds`, not counting time in the queue.
        """
        try:
            return self.submit(grammar).within(seconds)
        except Late:
            raise DataError(
                f"the {KINDS[grammar.kind]} was not compiled within {seconds:g} s",
                where=where,
                remedy="Simplify the grammar: use fewer choices, smaller repetition counts or less nesting.",
            ) from None
        except DataError as error:
            raise DataError(error.what, where=where, remedy=error.remedy) from None

    def submit(self, grammar: Grammar, tenant: str = "") -> CompileTask[Compiled]:
        """Queue a grammar for compilation in the background, and return the future.

        Workers serve the tenants round-robin. The future raises the errors of `compile`, except the timeout. As long
        as the caller keeps the future, `compile` returns its result, even if the cache has evicted the grammar. A
        caller may cancel the future only if no other caller waits for the result.
        """
        with self._lock:
            build = self._known.get(grammar)
            if build is None or build.cancelled() or (build.done() and build.exception()):
                build = self._known[grammar] = CompileTask(lambda: self._kept_build(grammar))
        if build.done():
            self._keep(grammar, build)
        else:
            self._queue.add(tenant, build)
        return build

    def _kept_build(self, grammar: Grammar) -> Compiled:
        compiled = self._build(grammar)
        self._keep(grammar, self._known[grammar])
        return compiled

    def _keep(self, grammar: Grammar, build: CompileTask[Compiled]) -> None:
        with self._lock:
            self._kept[grammar] = build
            self._kept.move_to_end(grammar)
            while len(self._kept) > CACHED:
                self._kept.popitem(last=False)

    def close(self) -> None:
        """Cancel all queued compilations."""
        self._queue.close()

    @cached_property
    def lexicon(self) -> Lexicon:
        """Which token ids end a reply, and which ids a matching reply may contain."""
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
                remedy='Run: pip install "rorqual[serve]"',
            ) from None
        return llguidance

    @cached_property
    def _vocabulary(self) -> Any:
        """The tokenizer in llguidance's format. All added tokens are marked as special. Otherwise an added token, such
        as Qwen3's `<think>`, could match plain text in the grammar."""
        data = json.loads(self._tokenizer.source)
        data["added_tokens"] = [token | {"special": True} for token in data["added_tokens"]]
        data |= {"truncation": None, "padding": None}
        size = max(self._vocab_size, self._tokenizer.vocab_size)
        return self._library.LLTokenizer(json.dumps(data), n_vocab=size, eos_token=self._stop_ids)

    def _build(self, grammar: Grammar) -> Compiled:
        with self._building:  # the first thread computes the cached properties, and other threads wait
            library, lexicon, _ = self._library, self.lexicon, self._vocabulary
        try:
            match grammar.kind:
                case "calls":
                    return self._calls(grammar, library, lexicon)
                case "json_schema":
                    return self._schema(grammar.source, library, lexicon)[0]
            return self._compiled(written(library, grammar), lexicon)
        except Unusable as error:
            raise refusal(grammar, str(error)) from None

    def _schema(self, source: str, library: Any, lexicon: Lexicon) -> tuple[Compiled, SchemaValidator | None]:
        """Compile the constraints of a schema that llguidance can enforce. Also return a validator for the constraints
        that llguidance cannot enforce, or None if llguidance enforces all."""
        schema, loose = parse_schema(source), frozenset[str]()
        rewritten, checked = rewrite(schema)
        judge = SchemaValidator(schema) if checked else None
        for _ in range(MAX_LOOSE):
            try:
                compiled = self._compiled(schema_text(library, rewritten), lexicon, schema=rewritten)
                break
            except Unusable as error:
                looser = loosened(str(error), loose)
                if looser is not None:
                    loose = looser
                    rewritten, checked = rewrite(schema, loose)
                    continue
                rewritten = pruned(rewritten, str(error), lambda one: self._impossible(one, library, lexicon))
        else:
            raise Unusable(NOTHING)
        if checked:
            judge = judge or SchemaValidator(schema)
            compiled.fault = lambda ids: judge.fault(self._tokenizer.decode(ids))
        return compiled, judge if checked else None

    def _impossible(self, part: Mapping[str, Any], library: Any, lexicon: Lexicon) -> bool:
        """Return whether no reply can match a schema."""
        try:
            self._compiled(schema_text(library, part), lexicon)
        except Unusable as error:
            return error.nothing
        return False

    def _calls(self, grammar: Grammar, library: Any, lexicon: Lexicon) -> Compiled:
        if self._spelling is None:
            raise DataError(
                "tool calls need a chat format with a tool-call syntax",
                remedy="Load a run whose chat format has a tool-call syntax.",
            )
        calls = read_calls(grammar.source)
        parts, judges = dict[str, Mapping[str, Any]](), dict[str, SchemaValidator | None]()
        for function in calls.functions:  # compile each function separately, so that an error can name it
            try:
                compiled, judges[function.name] = self._alone(function.schema, library, lexicon)
            except DataError as error:
                raise blame(function.name, error) from None
            parts[function.name] = compiled.schema or {}
            if self._spelling.checked and judges[function.name] is None:
                judges[function.name] = SchemaValidator(parse_schema(function.schema))
        answer, answers = None, None
        if calls.answer is not None:
            compiled, answers = self._alone(calls.answer, library, lexicon)
            answer = compiled.schema or {}
        self._spelling.warm()
        usable = lexicon.usable.copy()
        usable[self._spelling.marks] = True
        options = options_of(*map(json.dumps, (*parts.values(), answer)))
        text = str(library.LLMatcher.grammar_from_lark(self._spelling.lark(parts, answer, calls.many, options)))
        fault = CallsValidator(self._spelling, judges, answers).fault if answers or any(judges.values()) else None
        return self._compiled(text, replace(lexicon, usable=usable), spelling=self._spelling, fault=fault)

    def _alone(self, source: str, library: Any, lexicon: Lexicon) -> tuple[Compiled, SchemaValidator | None]:
        try:
            return self._schema(source, library, lexicon)
        except Unusable as error:
            raise refusal(Grammar("json_schema", source), str(error)) from None

    def _compiled(self, text: str, lexicon: Lexicon, **kept: Any) -> Compiled:
        limits = self._library.LLParserLimits(**LIMITS)
        matcher = self._library.LLMatcher(self._vocabulary, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise Unusable(matcher.get_error())
        compiled = Compiled(matcher, lexicon, **kept)
        _rehearse(compiled)
        return compiled


def _rehearse(compiled: Compiled) -> None:
    """Test a grammar by generating up to `REHEARSED` tokens.

    Raises Unusable if no reply can match the grammar, or if the grammar exceeds a limit.
    """
    constraint = compiled.start()
    for _ in range(REHEARSED):
        mask = constraint.mask()
        if constraint.error:
            raise Unusable(constraint.error)
        if mask is None or constraint.done:
            return
        constraint.accept(int(mask.argmax()))
