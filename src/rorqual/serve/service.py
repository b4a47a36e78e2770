"""State that all routes share: model name, tokenizer, connection to the engine, API keys and metrics."""

from __future__ import annotations

import asyncio
import json
import secrets
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fastapi import Request, Response
from pydantic import ValidationError

from rorqual.core.errors import ConfigError, RorqualError
from rorqual.core.records import NO_DEFAULTS, Message, RunDir, TaskDefaults, Thinking, Tool
from rorqual.core.sampling import INT32, SERVER_DEFAULTS, SamplingParams
from rorqual.data.chat import ChatFormat
from rorqual.evals.calibration import Calibration
from rorqual.serve.bodies import LargeBodyLimit
from rorqual.serve.bridge import EngineBridge
from rorqual.serve.errors import ApiError, bad_request
from rorqual.serve.keys import ApiKeys
from rorqual.serve.limits import MAX_VALUES, SLICE, too_large
from rorqual.serve.metrics import Metric, ServerMetrics
from rorqual.serve.rate_limit import RateLimit
from rorqual.serve.schemas import ChatRequest, GenerationRequest, TextRequest
from rorqual.serve.unsupported_fields import TEXT_ONLY, unsupported_type
from rorqual.serve.uploads import WeightUploads
from rorqual.serve.validation_errors import api_error_from_pydantic
from rorqual.serve.wire import EngineLimits, EngineRequest

T = TypeVar("T")
MASK = 2**64 - 1
SEED_BITS = 63
EXAMPLES = 2
"""Number of example prompts in the description of the model that `/v1/models` returns."""
GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Keys of a published model's generation config whose values the server uses as default sampling parameters."""
COUNTED = 200_000
"""Texts of more than `COUNTED` bytes are first tokenized in slices, so that the server can refuse a text early if the text
exceeds the model's context."""


def read_defaults(run: RunDir) -> SamplingParams:
    """Return the default sampling parameters: the values of `generation` in the run's configuration, and OpenAI's
    defaults for missing keys.

    Raises ConfigError if a default would be invalid as a parameter of a request.
    """
    generation = run.config().get("generation") or {}
    where = f"{run.config_file} (generation)"
    if not isinstance(generation, dict):
        raise ConfigError("`generation` is not a mapping", where=where, remedy="Restore the file.")
    known = {name: generation[name] for name in GENERATION if generation.get(name) is not None}
    try:
        return GenerationRequest.model_validate({"model": "-", **known}).params()
    except ValidationError as error:
        problem = api_error_from_pydantic(error, known, known).message
        raise ConfigError(problem, where=where, remedy="Correct or remove the key.") from None


@dataclass(frozen=True)
class Service(ABC):
    """The state that all routes of a server share, created once at the start.

    `created`: Unix time of the served model in seconds. `max_body`: maximum bytes of a request. `keep_alive`: a stream sends a
    comment after this many seconds without a token. `operator`: the tenant that may read the metrics of all tenants. `cors`:
    allowed origins. `uploads`: weight updates from a trainer, or None if weight updates are turned off. `rate`: limit on the
    requests of each tenant. `cutters`: one worker thread per tenant. `requests`: the schemas of the requests that the server
    answers.
    """

    requests: ClassVar[tuple[type[GenerationRequest], ...]]

    name: str
    created: int
    keys: ApiKeys
    max_body: int
    keep_alive: float = 5.0
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    operator: str = ""
    cors: frozenset[str] = frozenset()
    uploads: WeightUploads | None = None
    rate: RateLimit = field(default_factory=RateLimit)
    bodies: LargeBodyLimit = field(default_factory=LargeBodyLimit)
    cutters: dict[str, ThreadPoolExecutor] = field(default_factory=dict)

    @property
    def bridges(self) -> tuple[EngineBridge, ...]:
        """The connections to the engines of all models."""
        return ()

    def tasks(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return the work that runs beside the requests until the server stops."""
        return ()

    def model_cards(self, tenant: str) -> list[dict[str, Any]]:
        """Return the descriptions of the models that `tenant` may use, in the form of `/v1/models`."""
        card = {"id": self.name, "object": "model", "created": self.created, "owned_by": "rorqual"}
        return [card | self.model_details()]

    def model_card(self, name: str, tenant: str) -> dict[str, Any]:
        """Return the description of a model. Raises ApiError with status 404 if the tenant has no model called `name`."""
        cards = [card for card in self.model_cards(tenant) if card["id"] == name]
        if not cards:
            raise self.unknown_model_error(name)
        return cards[0]

    @abstractmethod
    def model_details(self) -> dict[str, Any]:
        """Return the fields that describe the model in `/v1/models` and that OpenAI's API does not have."""

    async def more_metrics(self, only: str | None) -> Sequence[Metric]:
        """Return metrics that not every server has. `only`: the tenant whose metrics are returned, or None for all tenants."""
        return ()

    @abstractmethod
    def active_requests(self) -> tuple[Counter[str], Counter[str]]:
        """Return the numbers of running and of waiting requests, by tenant."""

    async def run_in_thread(self, tenant: str, work: Callable[[], T]) -> T:
        """Run `work` in the tenant's thread and return its result.

        Each tenant has one thread, so the work of one tenant does not delay other tenants. Work that has not started is
        skipped if the caller is cancelled.
        """
        if tenant not in self.cutters:
            self.cutters[tenant] = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        return await asyncio.get_running_loop().run_in_executor(self.cutters[tenant], work)

    def close(self) -> None:
        """Cancel queued work of the tenants' threads, and stop weight updates."""
        for cutter in self.cutters.values():
            cutter.shutdown(wait=False, cancel_futures=True)
        if self.uploads is not None:
            self.uploads.close()

    def unknown_model_error(self, name: str) -> ApiError:
        """Return the error for a request to a model that is not served."""
        problem = f"`model` is {json.dumps(name[:256], ensure_ascii=False)}, which is not served here"
        return ApiError(404, f"{problem}. Use '{self.name}'.", param="model", code="model_not_found")


@dataclass(frozen=True)
class CascadeTeacher:
    """The second model of a cascade. `name` and `student` are the names of the teacher and the student in the usage of a response.

    The student's answer is kept if the student's calibrated confidence is at least `sure` (`evals.cascade`).
    """

    service: ModelService
    name: str
    student: str
    calibration: Calibration
    sure: float

    def confidence(self, logprob: float, tokens: int) -> float:
        """Return the calibrated probability that the student's reply is right. `logprob` is the sum of the
        log-probabilities of the reply's `tokens` tokens."""
        return self.calibration.probability(logprob / tokens)


@dataclass(frozen=True, kw_only=True)
class ModelService(Service):
    """The shared state of a server of models, whose engines run in processes of their own.

    `prompts`: example prompts from the problems that the model was trained on. `think_budget`: maximum thinking tokens of a
    chat reply, unless the request sets its own `think_budget`; 0 sets no maximum. `task`: defaults of chat requests, from the
    run's `defaults.json`. `teacher`: the second model of a cascade, which answers chat requests if the first model is not
    sure, or None. `adapter`: checkpoint of the LoRA adapter that answers, or "" for the model itself.
    """

    requests = ChatRequest, TextRequest

    chat: ChatFormat
    bridge: EngineBridge
    defaults: SamplingParams = SERVER_DEFAULTS
    prompts: Sequence[str] = ()
    think_budget: int = 0
    task: TaskDefaults = NO_DEFAULTS
    teacher: CascadeTeacher | None = None
    adapter: str = ""

    def for_model(self, name: str, tenant: str) -> ModelService:
        """Return the service of the model `name`. Raises ApiError if `tenant` may not use a model of this name."""
        if name != self.name:
            raise self.unknown_model_error(name)
        return self

    def other_responder(self, body: bytes, tenant: str) -> Callable[[Request], Awaitable[Response]] | None:
        """Return what answers a chat request if its model has no engine, else None. Raises ApiError if the request is invalid."""
        return None

    async def prepare_engine(self) -> None:
        """Load what the engine needs for this service's model. Raises ApiError if the engine refuses it."""
        if self.adapter:
            await self.bridge.use_adapter(self.name, Path(self.adapter))

    @property
    def bridges(self) -> tuple[EngineBridge, ...]:
        return (self.bridge,) if self.teacher is None else (self.bridge, self.teacher.service.bridge)

    def model_details(self) -> dict[str, Any]:
        temperature = self.task.temperature
        return {
            "max_model_len": self.bridge.info.max_len,
            "thinks": self.chat.thinks,
            "temperature": self.defaults.temperature if temperature is None else temperature,
            "examples": list(self.prompts[:EXAMPLES]),
        }

    def active_requests(self) -> tuple[Counter[str], Counter[str]]:
        jobs = [job for bridge in self.bridges for job in bridge.jobs.values()]
        running = Counter(job.tenant for job in jobs if job.started)
        return running, Counter(job.tenant for job in jobs if not job.started)

    def check_total_tokens(self, asks: Sequence[EngineRequest], param: str) -> None:
        """Raise ApiError if several prompts together have more than `MAX_VALUES` tokens. A single prompt may fill the context."""
        total = sum(len(ask.prompt) for ask in asks)
        if len(asks) > 1 and total > MAX_VALUES:
            raise too_large(
                param, total, "tokens in all prompts together", MAX_VALUES, "Send the prompts in several requests."
            )

    def served_model_limits(self, name: str) -> EngineLimits:
        """Return the engine's limits. Raises ApiError if the model is not served."""
        if name != self.name:
            raise self.unknown_model_error(name)
        return self.bridge.info

    def check_text_length(self, texts: Sequence[str], param: str, info: EngineLimits) -> None:
        """Raise ApiError if the `texts` together are too long for the model's context.

        The check runs before the texts are fully tokenized, because tokenizing one megabyte of text may take 150 MB of
        memory.
        """
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        least = -(-size // self.chat.tokenizer.max_bytes_per_token)
        if least < info.max_len and size > COUNTED:
            least = self._count_tokens(texts, info.max_len)
        if least >= info.max_len:
            raise _too_long(param, f"at least {least}", info)

    def _count_tokens(self, texts: Sequence[str], most: int) -> int:
        """Return a lower bound of the number of tokens in `texts`. Counting stops when the lower bound reaches `most`.

        Texts are tokenized in slices. Splitting a text adds tokens at the cuts, so a sixteenth of the count is
        subtracted.
        """
        count = 0
        for text in texts:
            for start in range(0, len(text), SLICE):
                count += self.chat.tokenizer.count_tokens(text[start : start + SLICE])
                if count - count // 16 >= most:
                    return count - count // 16
        return count - count // 16

    def check_content_parts(self, messages: Sequence[Message]) -> None:
        """Raise ApiError if a message has a content part that the chat format does not support."""
        if unsupported_part := self.chat.find_unsupported_part(messages):
            number, place, part = unsupported_part
            path = f"messages[{number}].content[{place}]"
            raise unsupported_type(path, part.type, f"this model does not accept {part.plural}", TEXT_ONLY)

    def chat_prompt_ids(
        self,
        messages: Sequence[Message],
        thinking: Thinking,
        tools: Sequence[Tool] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a conversation. `schema` is the JSON schema that the answer must match, if any.

        Raises ApiError if the chat format cannot represent the conversation.
        """
        if tools and not self.chat.takes_tools:
            raise bad_request(
                f"`tools` is not supported by this model's chat format, '{self.chat.name}'. Leave `tools` out.",
                "tools",
                "no_tools_here",
            )
        try:
            if schema is not None:
                return self.chat.prompt_with_schema(messages, thinking, tools, schema)
            return self.chat.prompt(messages, thinking, tools)
        except RorqualError as error:
            raise bad_request(
                f"`messages` cannot be converted to a prompt: {error.what}. {error.remedy}".strip(), "messages"
            ) from None

    def text_prompt_ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        """Tokenize a text prompt, with BOS first if the model has a BOS token. A prompt of token ids is returned unchanged."""
        if not isinstance(prompt, str):
            return prompt
        try:
            return [*([] if self.chat.bos is None else [self.chat.bos]), *self.chat.tokenizer.encode(prompt)]
        except RorqualError as error:
            raise bad_request(f"`prompt` cannot be tokenized: {error.what}. {error.remedy}".strip(), "prompt") from None

    def build_engine_request(
        self,
        request: GenerationRequest,
        prompt: Sequence[int],
        param: str,
        *,
        tools: bool = False,
        effort: float | None = None,
        task: TaskDefaults = NO_DEFAULTS,
        plain: bool = False,
    ) -> EngineRequest:
        """Return the request for the engine. Raises ApiError if the model is not served or the prompt exceeds the context.

        `effort` is the share of the server's thinking budget that a chat request may use, or None for a text request.
        `task` holds the defaults of a chat request. With `plain`, the grammar applies to the whole reply.
        """
        info = self.served_model_limits(request.model)
        self._check_prompt_ids(prompt, param, info)
        defaults = self.defaults if task.temperature is None else replace(self.defaults, temperature=task.temperature)
        params, seed = request.params(defaults), request.given_sampling_params().get("seed")
        if out_of_range := [id_ for id_, _ in params.logit_bias if id_ >= info.vocab_size]:
            raise bad_request(
                f"`logit_bias` contains token id {out_of_range[0]}. Give ids from 0 to {info.vocab_size - 1}.",
                "logit_bias",
            )
        limit = min(request.max_reply_tokens or task.max_tokens or INT32, info.max_len - len(prompt))
        if params.min_tokens > limit:
            raise bad_request(
                f"`min_tokens` is {params.min_tokens}, but the reply may have at most {limit} tokens. Lower `min_tokens`.",
                "min_tokens",
            )
        params = replace(
            params,
            think_budget=self._thinking_budget(params.think_budget, limit, self.chat.thinking_mode_of(prompt), effort),
        )
        params = replace(
            params,
            max_tokens=limit,
            top_k=max(0, params.top_k),  # vLLM's API also accepts -1 to disable top-k
            seed=secrets.randbits(SEED_BITS) if seed is None else seed & MASK,
            # The engine would also match stop strings inside tool calls, where stop strings must not apply.
            stop=() if tools else params.stop,
            top_logprobs=request.n_top_logprobs or 0,
            grammar=task.grammar if request.is_reply_unconstrained else request.grammar(),
            prompt_logprobs=request.n_prompt_top_logprobs,
            calculator=params.calculator
            or bool(task.calculator and "calculator" not in request.given_sampling_params()),
        )
        # In vLLM's API, the request with the lowest priority number runs first. In the engine, the highest number runs
        # first.
        return EngineRequest(tuple(prompt), params, -(request.priority or 0), plain, self.name if self.adapter else "")

    def _thinking_budget(self, own: int | None, limit: int, thinking: Thinking, effort: float | None) -> int | None:
        """Return the thinking budget in tokens of a reply of at most `limit` tokens, or None if thinking has no maximum.

        Raises ApiError if the request's `own` budget has no effect or leaves no token for the answer.
        """
        room = limit - len(self.chat.end_think_ids) - 1
        limits = self.chat.thinks and self.chat.can_limit_thinking(thinking)
        if own is not None and thinking != "off":
            if not limits:
                raise bad_request(
                    "`think_budget` needs a model that thinks between tokens `<think>` and `</think>`. Leave `think_budget` out.",
                    "think_budget",
                )
            if own > room:
                lower = (
                    f"Set `think_budget` to {room} or less, or raise `max_tokens`."
                    if room > 0
                    else "Raise `max_tokens`."
                )
                raise bad_request(
                    f"`think_budget` is {own}, but the reply has at most {limit} tokens, for thinking, `</think>` and answer. {lower}",
                    "think_budget",
                )
            return own
        if thinking == "off" or not limits or effort is None or (effort == 1 and not self.think_budget):
            return None
        budget = min(room, int(effort * (self.think_budget or limit)))
        return max(1, budget) if room > 0 else None

    @staticmethod
    def _check_prompt_ids(prompt: Sequence[int], param: str, info: EngineLimits) -> None:
        if not prompt or max(prompt) >= info.vocab_size:
            problem = (
                f"contains token id {max(prompt)}. Give ids from 0 to {info.vocab_size - 1}"
                if prompt
                else "is empty. Give a non-empty prompt"
            )
            raise bad_request(f"`{param}` {problem}.", param)
        if len(prompt) >= info.max_len:
            raise _too_long(param, len(prompt), info)


def _too_long(param: str, tokens: int | str, info: EngineLimits) -> ApiError:
    """Return the error for a text that leaves no room for a reply in the context.

    Clients such as LiteLLM recognise the error by OpenAI's words "This model's maximum context length is".
    """
    problem = f"This model's maximum context length is {info.max_len} tokens, but `{param}` alone has {tokens} tokens"
    return bad_request(f"{problem}. Shorten this field.", param, "context_length_exceeded")
