"""What every route needs: the model's name and tokenizer, the engine's bridge, keys and counters."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import ValidationError

from rorqual.core.errors import ConfigError, RorqualError
from rorqual.core.records import Message, RunDir, Thinking, Tool
from rorqual.core.sampling import SERVER_DEFAULTS, SamplingParams
from rorqual.data.chat import ChatFormat
from rorqual.serve.bodies import Bodies
from rorqual.serve.bridge import Bridge
from rorqual.serve.errors import ApiError, refuse
from rorqual.serve.fields import TEXT_ONLY, unsupported
from rorqual.serve.keys import Keys
from rorqual.serve.limits import MAX_VALUES, SLICE, too_large
from rorqual.serve.metrics import Metrics
from rorqual.serve.schemas import Sampling
from rorqual.serve.uploads import WeightUploads
from rorqual.serve.wire import Ask, Ready
from rorqual.serve.words import explain, shown

T = TypeVar("T")
MASK = 2**64 - 1
SEED_BITS = 63
GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What of a published model's generation config the server takes as its defaults."""
MAX_SCORES = 1 << 18
"""Log-probabilities of a prompt that one request may ask for: some 20 MB of an answer."""
COUNTED = 200_000
"""Bytes of text from which on tokens are counted, slice by slice, before the whole is tokenised."""


def read_defaults(run: RunDir) -> SamplingParams:
    """How to sample where a request says nothing: what `run.yaml`'s key generation says (`GENERATION`), else OpenAI's values.

    Numbers that no request could give are a `ConfigError`.
    """
    given = run.config().get("generation") or {}
    where = f"{run.config_file} (generation)"
    if not isinstance(given, dict):
        raise ConfigError("not a mapping of keys", where=where, remedy="Restore the file.")
    known = {name: given[name] for name in GENERATION if given.get(name) is not None}
    try:
        return Sampling.model_validate({"model": "-", **known}).params()
    except ValidationError as error:
        what = explain(error, known, {}).message
        raise ConfigError(what, where=where, remedy="Correct it, or take the key out.") from None


@dataclass(frozen=True)
class Service:
    """Built once, at the start. `created` in seconds since 1970; `keep_alive`: seconds of silence before a comment is streamed; `operator`:
    the tenant that may read everybody's figures; `cors`: origins of other sites whose scripts may ask; `uploads`: of weights that a trainer
    sends, None where that is off."""

    name: str
    created: int
    chat: ChatFormat
    bridge: Bridge
    keys: Keys
    max_body: int
    keep_alive: float = 5.0
    defaults: SamplingParams = SERVER_DEFAULTS
    metrics: Metrics = field(default_factory=Metrics)
    operator: str = ""
    cors: frozenset[str] = frozenset()
    uploads: WeightUploads | None = None
    bodies: Bodies = field(default_factory=Bodies)
    cutters: dict[str, ThreadPoolExecutor] = field(default_factory=dict)

    async def beside(self, tenant: str, work: Callable[[], T]) -> T:
        """What `work` returns, done in the tenant's own thread: its requests one after another, and none in the way of others'. Where
        the caller is cancelled before its turn, it is not done."""
        if tenant not in self.cutters:
            self.cutters[tenant] = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        return await asyncio.get_running_loop().run_in_executor(self.cutters[tenant], work)

    def close(self) -> None:
        """Nothing that waits for its turn is done any more."""
        for cutter in self.cutters.values():
            cutter.shutdown(wait=False, cancel_futures=True)
        if self.uploads is not None:
            self.uploads.close()

    def check_total(self, asks: Sequence[Ask], param: str) -> None:
        """Refuse prompts that are many and long; a single one may fill the context."""
        total = sum(len(ask.prompt) for ask in asks)
        if len(asks) > 1 and total > MAX_VALUES:
            raise too_large(
                param, total, "tokens in all prompts together", MAX_VALUES, "Send them in several requests."
            )

    def check_model(self, name: str) -> Ready:
        """What the engine said of itself; another model, or an engine that is loading, is refused."""
        if name != self.name:
            raise self.no_model(name)
        if self.bridge.info is None:
            raise ApiError(503, "The engine is still loading. Try again in a moment.", code="loading")
        return self.bridge.info

    def no_model(self, name: str) -> ApiError:
        """The refusal of a model that is not served."""
        what = f"`model` is {shown(name)}, which is not served here"
        return ApiError(404, f"{what}. Use '{self.name}'.", param="model", code="model_not_found")

    def check_size(self, texts: Sequence[str], param: str, info: Ready) -> None:
        """Refuse what cannot fit the context, before the tokens of the whole are in memory: a megabyte of text may take 150 MB."""
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        least = -(-size // self.chat.tokenizer.longest)
        if least < info.max_len and size > COUNTED:
            least = self._counted(texts, info.max_len)
        if least >= info.max_len:
            raise refuse(
                f"`{param}` has {least} tokens or more; the context of {info.max_len} must hold it and a reply. Shorten it.",
                param,
                "context_length_exceeded",
            )

    def _counted(self, texts: Sequence[str], most: int) -> int:
        """Tokens of texts, up to where they are more than `most`; a sixteenth is taken off for what the cuts between slices add."""
        found = 0
        for text in texts:
            for at in range(0, len(text), SLICE):
                found += self.chat.tokenizer.count(text[at : at + SLICE])
                if found - found // 16 >= most:
                    return found - found // 16
        return found - found // 16

    def check_parts(self, messages: Sequence[Message]) -> None:
        """Refuse a content part that the chat format cannot write."""
        if found := self.chat.foreign_part(messages):
            number, place, part = found
            path = f"messages[{number}].content[{place}]"
            raise unsupported(path, part.type, f"this model does not accept {part.plural}", TEXT_ONLY)

    def prompt_of(self, messages: Sequence[Message], thinking: Thinking, tools: Sequence[Tool] = ()) -> list[int]:
        """Ids of a conversation; what the chat format cannot write is refused."""
        if tools and not self.chat.takes_tools:
            raise refuse(
                f"`tools` cannot be used: this model's chat format, '{self.chat.name}', has no way to write them. Leave them out.",
                "tools",
                "no_tools_here",
            )
        try:
            return self.chat.prompt(messages, thinking, tools)
        except RorqualError as error:
            raise refuse(
                f"`messages` cannot be written as a prompt: {error.what}. {error.remedy}".strip(), "messages"
            ) from None

    def prompt_of_text(self, prompt: str | Sequence[int]) -> Sequence[int]:
        """Ids of a text to continue; those that were given as such stay as they are."""
        if not isinstance(prompt, str):
            return prompt
        try:
            return [*([] if self.chat.bos is None else [self.chat.bos]), *self.chat.tokenizer.encode(prompt)]
        except RorqualError as error:
            raise refuse(f"`prompt` cannot be read: {error.what}. {error.remedy}".strip(), "prompt") from None

    def ask(self, request: Sampling, prompt: Sequence[int], param: str, *, tools: bool = False) -> Ask:
        """The request as the engine takes it; a wrong model, or a prompt that does not fit, is refused."""
        info = self.check_model(request.model)
        self._check(prompt, param, info)
        params, seed = request.params(self.defaults), request.given().get("seed")
        if outside := [id_ for id_, _ in params.logit_bias if id_ >= info.vocab_size]:
            raise refuse(
                f"`logit_bias` names token {outside[0]}. Give ids from 0 to {info.vocab_size - 1}.", "logit_bias"
            )
        limit, top = min(request.limit, info.max_len - len(prompt)), request.scored
        if params.min_tokens > limit:
            raise refuse(
                f"`min_tokens` is {params.min_tokens}, and the reply may have {limit}. Lower it.", "min_tokens"
            )
        if top is not None and len(prompt) * (1 + top) > MAX_SCORES:
            what = f"`{param}` has {len(prompt)} tokens, each with {top} likeliest ones: more than {MAX_SCORES} log-probabilities"
            raise refuse(f"{what}. Ask for fewer, or about a shorter prompt.", param)
        params = replace(
            params,
            max_tokens=limit,
            top_k=max(0, params.top_k),  # vLLM's -1 is off
            seed=secrets.randbits(SEED_BITS) if seed is None else seed & MASK,
            # The engine would find a stop string inside of a call, too, where it is not looked for.
            stop=() if tools else params.stop,
            top_logprobs=request.top or 0,
            grammar=request.grammar(),
            prompt_logprobs=top,
        )
        return Ask(tuple(prompt), params, -(request.priority or 0))  # vLLM's lowest is the engine's highest

    @staticmethod
    def _check(prompt: Sequence[int], param: str, info: Ready) -> None:
        if not prompt or max(prompt) >= info.vocab_size:
            what = (
                f"holds token {max(prompt)}. Give ids from 0 to {info.vocab_size - 1}"
                if prompt
                else "is empty. Write something"
            )
            raise refuse(f"`{param}` {what}.", param)
        if len(prompt) >= info.max_len:
            raise refuse(
                f"`{param}` has {len(prompt)} tokens; the context of {info.max_len} must hold it and a reply. Shorten it.",
                param,
                "context_length_exceeded",
            )
