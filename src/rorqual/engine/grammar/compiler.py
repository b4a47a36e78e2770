"""Compile grammars with the optional package llguidance. A grammar is a JSON schema, a regular expression, a choice, any
JSON object or tool calls.

`GrammarCompiler.compile` first builds a grammar in a trial process with limits of CPU time and memory (`grammar.trial`), and
then in a background thread. Each sample has its own copy of the compiled grammar. A sample's copy of the compiled grammar masks
tokens before each sampling step, and advances its own state with each sampled token.

llguidance ignores the keywords of JSON Schema that it does not support. Every finished answer is therefore validated against
its JSON schema, in the trial process.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from rorqual.core.errors import ConfigError, DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.grammar.calls import NO_CALL, CallSyntax
from rorqual.engine.grammar.constraint import (
    Constraint,
    ConstraintAfterThinking,
    GrammarUsage,
    MaskBudget,
    MatcherConstraint,
    ReasoningFormat,
    ValidatedConstraint,
    VocabularyMasks,
)
from rorqual.engine.grammar.error_messages import grammar_error
from rorqual.engine.grammar.queue import CompileQueue, CompileTask
from rorqual.engine.grammar.source import check_pattern, choice_pattern, parse_calls, parse_schema
from rorqual.engine.grammar.trial import FinishedAnswer, LlguidanceGrammar, TrialProcess
from rorqual.engine.grammar.trial_process import UnusableGrammar, build_matcher, build_vocabulary
from rorqual.engine.request import Grammar

WHITESPACE = r"\n[ ]{0,16}|[ ]"
"""Pattern of the white space that is allowed between the tokens of a JSON text. The length of the white space is limited,
because a small model may repeat spaces forever."""
JSON: Mapping[str, Any] = {"whitespace_pattern": WHITESPACE, "lenient": True}
ESCAPES = 'nrbtf"\\'
"""Characters that may follow a backslash in a JSON string. `u` is excluded, because the grammar would not recognise a property
name with a `\\u` escape. The value of a property with an unrecognised name could violate the schema."""
CONTROL = re.compile(r"\\u00(?:[01]|7[fF])|\x7f")
MAX_STEPS = 15_000
"""Maximum sum of the values of `multipleOf` in a schema. llguidance needs a lexer state for each remainder, and all replies to a
compiled grammar share at most `max_lexer_states` states."""
STEP = re.compile(r'"multipleOf": (\d+)')
CACHED = 16
WORKERS = 2
NEED_NO_TRIAL = ("json", "choice")
"""Kinds of grammars that compile without a trial, because every grammar of these kinds compiles within milliseconds."""


def json_options(*schemas: str) -> dict[str, Any]:
    """Return llguidance's options for JSON grammars. The options allow `\\u` escapes only if a schema contains a control
    character that cannot be written without a `\\u` escape."""
    return dict(JSON) if any(map(CONTROL.search, schemas)) else {**JSON, "json_allowed_escapes": ESCAPES}


def schema_to_grammar(library: Any, schema: Mapping[str, Any]) -> str:
    """Return a JSON schema as a grammar in llguidance's format. Raises UnusableGrammar if llguidance rejects the schema, or would
    run out of states during a reply."""
    try:
        text = json.dumps(schema)
        if sum(map(int, STEP.findall(text))) > MAX_STEPS:
            raise UnusableGrammar(f"its values of 'multipleOf' add up to more than {MAX_STEPS:,}")
        options = json_options(text)
        return str(library.LLMatcher.grammar_from_json_schema(json.dumps({**schema, "x-guidance": options})))
    except ValueError as error:  # raised, for example, if the schema has an integer of 400 digits
        raise UnusableGrammar(str(error)) from None


class CompiledGrammar:
    """A compiled grammar. `new_constraint` returns a `Constraint` for one sample.

    `validate` takes the token ids of a finished reply and returns the future of the reply's error or "". `validate` is None for a
    grammar without a JSON schema.
    """

    def __init__(
        self,
        matcher: Any,
        masks: VocabularyMasks,
        budget: MaskBudget,
        *,
        validate: Callable[[Sequence[int]], Future[str]] | None = None,
    ) -> None:
        self._matcher, self._masks, self._validate = matcher, masks, validate
        self.usage = GrammarUsage(budget)
        self._lock = threading.Lock()

    def new_constraint(self, thought: ReasoningFormat | None = None) -> Constraint:
        """Return a new constraint for one reply. Pass `thought` if the reply may start with reasoning."""
        with self._lock:
            constraint: Constraint = MatcherConstraint(self._matcher.deep_copy(), self._masks, self.usage)
        if self._validate is not None:
            constraint = ValidatedConstraint(constraint, self._validate, self._masks)
        if thought is not None:
            constraint = ConstraintAfterThinking(constraint, thought, self._masks)
        return constraint


class GrammarCompiler:
    """Compiles grammars for one tokenizer in background threads, and caches `CACHED` grammars. A tenant never gets the cached
    grammar of another tenant, because short response times would reveal the grammars of other tenants.

    `vocab_size` is the size of the model's vocabulary. `stop_ids` are the tokens that end a reply. A reply that matches a
    grammar contains no special tokens except the special tokens of tool calls. `spelling` is the syntax of tool calls, for
    grammars of kind `calls`.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int], spelling: CallSyntax | None = None
    ) -> None:
        self._spelling = spelling
        self._tokenizer, self._vocab_size, self._stop_ids = tokenizer, vocab_size, sorted(set(stop_ids))
        # All compiled grammars that a caller or `_cached` still references.
        self._known: weakref.WeakValueDictionary[tuple[str, Grammar], CompiledGrammar] = weakref.WeakValueDictionary()
        self._cached: OrderedDict[tuple[str, Grammar], CompiledGrammar] = OrderedDict()
        self._budgets = defaultdict[str, MaskBudget](MaskBudget)
        self._lock, self._building = threading.Lock(), threading.Lock()
        self._queue = CompileQueue[Any](WORKERS)
        self.close = weakref.finalize(self, self._queue.close)
        """Cancel all compilations, and end the trial processes."""

    def compile(self, grammar: Grammar, *, where: str = "grammar", tenant: str = "") -> CompiledGrammar:
        """Compile a grammar and wait for the compiled grammar.

        Raises DataError, with `where` as the location, if the grammar is invalid or exceeds a limit.
        """
        try:
            return self.submit(grammar, tenant).result()
        except DataError as error:
            raise DataError(error.what, where=where, remedy=error.remedy) from None

    def submit(self, grammar: Grammar, tenant: str = "") -> CompileTask[CompiledGrammar]:
        """Queue a grammar for compilation in the background, and return the future of the compiled grammar. The returned future
        raises the same errors as `compile`.

        As long as the caller references the compiled grammar, `compile` returns the same compiled grammar to `tenant`, even if
        the cache has evicted the grammar. A grammar that failed during a reply is compiled again.
        """
        task = CompileTask[CompiledGrammar](
            tenant, lambda trial, stopped: self._compile(tenant, grammar, trial, stopped)
        )
        if (compiled := self._find_usable(tenant, grammar)) is None:
            self._queue.add(task)
        else:
            self._add_to_cache(tenant, grammar, compiled)
            task.set_result(compiled)
        return task

    def _find_usable(self, tenant: str, grammar: Grammar) -> CompiledGrammar | None:
        """Return the tenant's compiled grammar, or None if it is not compiled or has failed during a reply."""
        with self._lock:
            compiled = self._known.get((tenant, grammar))
        return None if compiled is None or compiled.usage.failed else compiled

    def _compile(self, tenant: str, grammar: Grammar, trial: TrialProcess, stopped: threading.Event) -> CompiledGrammar:
        if (compiled := self._find_usable(tenant, grammar)) is None:
            try:
                compiled = self._build_grammar(tenant, grammar, trial, stopped)
            except UnusableGrammar as error:
                raise grammar_error(grammar.kind, str(error)) from None
        self._add_to_cache(tenant, grammar, compiled)
        return compiled

    def _add_to_cache(self, tenant: str, grammar: Grammar, compiled: CompiledGrammar) -> None:
        with self._lock:
            self._known[tenant, grammar] = self._cached[tenant, grammar] = compiled
            self._cached.move_to_end((tenant, grammar))
            if len(self._cached) > CACHED:  # the tenant with the most grammars loses its oldest one
                largest = Counter(owner for owner, _ in self._cached).most_common(1)[0][0]
                del self._cached[next(key for key in self._cached if key[0] == largest)]

    @cached_property
    def vocabulary_masks(self) -> VocabularyMasks:
        """Masks of the token ids that end a reply, and of the token ids that may occur in a reply that matches a grammar."""
        ids = range(self._vocab_size)
        stops = np.zeros(self._vocab_size, np.bool_)
        stops[self._stop_ids] = True
        special = np.array([self._tokenizer.is_special(id_) for id_ in ids], np.bool_)
        stops.flags.writeable = False
        return VocabularyMasks(stops, ~stops, ~special | stops, self._tokenizer.decode)

    @cached_property
    def _llguidance(self) -> Any:
        try:
            import jsonschema_rs  # noqa: F401  # for the validators
            import llguidance
        except ImportError as error:
            raise ConfigError(
                f"grammars need {error.name}, which is not installed",
                where="engine",
                remedy='Run: pip install "rorqual[serve]"',
            ) from None
        return llguidance

    @cached_property
    def _vocabulary_arguments(self) -> Mapping[str, Any]:
        """The arguments of `build_vocabulary`, by name."""
        size = max(self._vocab_size, self._tokenizer.vocab_size)
        return {"tokenizer": self._tokenizer.source, "size": size, "stop_ids": self._stop_ids}

    @cached_property
    def _llguidance_vocabulary(self) -> Any:
        return build_vocabulary(**self._vocabulary_arguments)

    def _validate(self, tenant: str, answers: Sequence[FinishedAnswer]) -> Future[str]:
        """Validate finished answers in a trial process, and return the future of the first error or "". Validations of a tenant wait
        for the tenant's compilations."""

        def find_error(trial: TrialProcess, stopped: threading.Event) -> str:
            if not answers:
                return NO_CALL
            found = trial.find_first_error(answers, self._vocabulary_arguments, stopped)
            function = found.get("name")
            return found.get("error", "") + (f" (the parameters of {function!r})" if function else "")

        task = CompileTask[str](tenant, find_error)
        self._queue.add(task)
        return task

    def _build_grammar(
        self, tenant: str, grammar: Grammar, trial: TrialProcess, stopped: threading.Event
    ) -> CompiledGrammar:
        with self._building:  # the first thread computes the cached properties, and other threads wait
            library, masks, _ = self._llguidance, self.vocabulary_masks, self._llguidance_vocabulary

        def run_trial(*parts: LlguidanceGrammar) -> None:
            found = trial.find_first_error(parts, self._vocabulary_arguments, stopped)
            if found:
                raise grammar_error(grammar.kind, found["error"], found["name"])

        if grammar.kind == "calls":
            return self._build_calls_grammar(tenant, grammar, library, masks, run_trial)
        if grammar.kind == "json_schema":
            schema = parse_schema(grammar.source)
            text = schema_to_grammar(library, schema)
            run_trial(LlguidanceGrammar(text, schema))
            return CompiledGrammar(
                build_matcher(self._llguidance_vocabulary, text),
                masks,
                self._budgets[tenant],
                validate=lambda ids: self._validate(tenant, [FinishedAnswer(self._tokenizer.decode(ids), schema)]),
            )
        if grammar.kind == "json":
            text = schema_to_grammar(library, {"type": "object"})
        else:
            pattern = choice_pattern(grammar.source) if grammar.kind == "choice" else check_pattern(grammar.source)
            text = str(library.LLMatcher.grammar_from_regex(pattern))
        if grammar.kind not in NEED_NO_TRIAL:
            run_trial(LlguidanceGrammar(text))
        return CompiledGrammar(build_matcher(self._llguidance_vocabulary, text), masks, self._budgets[tenant])

    def _build_calls_grammar(
        self, tenant: str, grammar: Grammar, library: Any, masks: VocabularyMasks, check: Callable[..., None]
    ) -> CompiledGrammar:
        spelling = self._spelling
        if spelling is None:
            raise DataError(
                "tool calls need a chat format with a tool-call syntax",
                remedy="Load a run whose chat format has a tool-call syntax.",
            )
        calls = parse_calls(grammar.source)
        # Each schema is tried alone, so that an error names its function.
        alone = [
            LlguidanceGrammar(schema_to_grammar(library, schema), schema, name)
            for name, schema in calls.parameter_schemas.items()
        ]
        alone += (
            [] if calls.answer is None else [LlguidanceGrammar(schema_to_grammar(library, calls.answer), calls.answer)]
        )
        check(*alone)
        usable = masks.usable.copy()
        usable[spelling.special_token_ids] = True
        options = json_options(*(json.dumps(part.schema) for part in alone))
        text = str(library.LLMatcher.grammar_from_lark(spelling.lark_grammar(calls, options)))
        check(LlguidanceGrammar(text))
        return CompiledGrammar(
            build_matcher(self._llguidance_vocabulary, text),
            replace(masks, usable=usable),
            self._budgets[tenant],
            validate=lambda ids: self._validate(tenant, spelling.parse_answers(ids, calls)),
        )
