"""A client for OpenAI-compatible endpoints. The client has the engine's interface. With the client, a served model can be
evaluated, or used as teacher or judge.

The client uses only the standard library. A remote endpoint does not return the experts of each token. The log-probabilities of
a remote endpoint may differ from the trainer's. Samples of a remote endpoint can therefore be graded, but not used for policy
gradients.
"""

from __future__ import annotations

import io
import json
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import Message as Headers
from http.client import HTTPException, HTTPResponse
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from rorqual.core.content_parts import content_json
from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.core.sampling import INT32, PARAMS, check_params
from rorqual.engine.request import Completion, Grammar, Request, SamplingParams
from rorqual.engine.seeds import Bits, sample_seed

ALWAYS = ("max_tokens", "temperature", "top_p")
"""Sampling parameters that are always sent, because servers have different defaults for these parameters."""
OWN_FORMS = ("seed", "n", "top_logprobs", "grammar")
"""Sampling parameters that `openai_fields` does not copy unchanged to a field of the same name.

A request with `n` samples becomes n HTTP requests, each with its own seed.
"""


def openai_fields(params: SamplingParams) -> dict[str, Any]:
    """Return sampling parameters as fields of OpenAI's API, or of the extensions in vLLM and SGLang.

    Sampling parameters at their default value are left out, except the sampling parameters in `ALWAYS`.
    """
    fields = dict[str, Any]()
    for name, param in PARAMS.items():
        value = getattr(params, name)
        if name in ALWAYS or (name not in OWN_FORMS and value != param.default):
            fields[name] = param.type.to_json_value(value)
    if params.top_logprobs:
        fields |= {"logprobs": True, "top_logprobs": params.top_logprobs}
    return fields | (_grammar_fields(params.grammar) if params.grammar else {})


def _grammar_fields(grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "calls":
        raise DataError(
            "kind 'calls' is not supported: a request to a remote endpoint carries no tools",
            where="grammar",
            remedy="Use kind 'json_schema' with the function's schema.",
        )
    if grammar.kind == "json":
        return {"response_format": {"type": "json_object"}}
    if grammar.kind == "regex":
        return {"guided_regex": grammar.source}
    try:
        source = json.loads(grammar.source)
    except ValueError as error:
        raise DataError(
            f"the source is not JSON: {error}", where="grammar", remedy="Write the source as JSON."
        ) from None
    if grammar.kind == "choice":
        return {"guided_choice": source}
    schema = {"name": "reply", "schema": source, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


T = TypeVar("T")
RETRIED = frozenset({408, 409, 425, 429})
FINAL = frozenset({501, 505})
"""HTTP status codes of server errors that a retry cannot fix."""
REFUSED = frozenset({400, 413, 422})
"""HTTP status codes of a request that failed because of the request's content. Requests with other content may succeed."""
UNSURE = frozenset({408, 409, 425})
"""HTTP status codes after which the server may have done and billed work. After any error status below 500 that is not in
`UNSURE`, the server has done no work."""
UNSENT = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
"""Exceptions that are raised before an HTTP request is sent."""
LONGEST_WAIT = 60.0


class RemoteError(RorqualError):
    """Raised if a remote endpoint does not answer or answers with an error. If the server rejected the request, `status` is the
    HTTP status of the rejection, else 0.

    If `alone` is True, only one request failed, after all its retries, and other requests may succeed. `alone` is True, for
    example, after HTTP 500, a timeout, a broken connection or a reply without a completion. `alone` is False for an error that
    affects all requests: a wrong API key, model or address, a rate limit, or an unreachable server.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "", status: int = 0, alone: bool = False) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.status, self.alone = status, alone or status in REFUSED


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    # urllib would send the API key to the target of a redirect.
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the monotonic time `end`, and raises TimeoutError after `end`.

    A socket timeout would limit the time of each read, not the total time.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, end: float) -> None:
        self._raw, self._sock, self._end = raw, sock, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the reply was not complete in time")
        self._sock.settimeout(seconds)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedHandler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Applies the timeout of a request to the whole reply: interim replies, headers and body, also of an error."""

    def do_open(self, http_class: Any, req: urllib.request.Request, **options: Any) -> HTTPResponse:
        end = time.monotonic() + (req.timeout or 0.0)

        def timed_reply(sock: socket.socket, **how: Any) -> HTTPResponse:
            reply = HTTPResponse(sock, **how)
            reply.fp = io.BufferedReader(_TimedReader(reply.fp.detach(), sock, end))
            return reply

        timed_class: Any = type(http_class.__name__, (http_class,), {"response_class": staticmethod(timed_reply)})
        return super().do_open(timed_class, req, **options)


class BudgetGuard:
    """Charges HTTP requests to a cost budget. Several threads call the methods of a `BudgetGuard` concurrently. `BudgetGuard`
    itself sets no limit. Subclasses of `BudgetGuard` override the methods."""

    def may_send(self, place: int) -> bool:
        """Return whether request number `place` may be sent.

        The client calls `may_send` before each attempt to send a request. `may_send` may block until other requests finish.
        """
        return True

    def count_unbilled_attempt(self, place: int) -> None:
        """Record an attempt of request number `place` that is not billed. An attempt is not billed if it was not sent, or if
        the server rejected it with a 3xx or 4xx status that is not in `UNSURE`.
        """

    def charge_failed_attempt(self, place: int, usage: Mapping[str, int]) -> None:
        """Record an attempt of request number `place` whose reply has no completion.

        `usage` is the token usage that the server reports for the attempt.
        """

    def settle_request(self, place: int) -> None:
        """Record that request number `place` has finished, with or without success.

        Attempts of the request whose cost is unknown are charged to the budget.
        """


FREE = BudgetGuard()


class _BudgetExhausted(RorqualError):
    """Raised if the cost budget does not allow another HTTP request."""


@contextmanager
def _stop_on_error(faults: list[BaseException], stop: threading.Event) -> Iterator[None]:
    """Record an exception in `faults` and tell the other threads to stop.

    Exceptions that other threads raise after the stop are only consequences of the stop.
    """
    try:
        yield
    except BaseException as error:
        faults.append(error)
        stop.set()
        raise


class RemoteClient(ABC):
    """A client that sends one HTTP request per sample to `url`, with up to `concurrency` requests in flight. Subclasses build
    the body of a request and parse the reply.

    `timeout` is the time limit of one attempt to send a request and read its whole reply, in seconds. A request is retried up to
    `retries` times. Reasons for a retry are HTTP 408, 409, 425, 429 and 5xx (except 501 and 505), and a broken connection. A
    reply without a completion, such as an HTML page, causes a retry. The delay before a retry starts at `backoff` seconds and
    doubles after each retry. If the server's `Retry-After` is longer than the delay, the client waits for the time in `Retry-After`. No delay
    before a retry exceeds `LONGEST_WAIT` seconds.
    """

    def __init__(
        self,
        base_url: str,
        path: str,
        *,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = 300.0,
        retries: int = 5,
        backoff: float = 0.5,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"'{base_url}' is not an HTTP address",
                where="base_url",
                remedy="Give an address such as http://localhost:8000/v1.",
            )
        if concurrency < 1 or retries < 0 or timeout <= 0:
            raise ConfigError(
                f"a setting is out of range: concurrency={concurrency}, retries={retries}, timeout={timeout}",
                where="remote",
                remedy="Set concurrency to 1 or more, retries to 0 or more, and timeout above 0 seconds.",
            )
        self.url = base_url.rstrip("/") + path
        self.concurrency, self.timeout = concurrency, timeout
        self.retries, self.backoff = retries, backoff
        self._key = api_key
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect(), _TimedHandler()]
        if parts.hostname in ("localhost", "127.0.0.1", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    @abstractmethod
    def _request_body(self, request: Request, sample: int) -> dict[str, Any]:
        """Return the JSON body of the HTTP request for one sample."""

    @abstractmethod
    def _parse_completion(self, data: Any, request: Request) -> Completion:
        """Return the completion in the JSON `data` of a reply. Raises NoCompletion if the reply has no completion."""

    @abstractmethod
    def _check_supported(self, wanted: Sequence[tuple[Request, int]]) -> None:
        """Raise DataError for a request that the endpoint does not support, before any request is sent."""

    def collect_completions(
        self,
        wanted: Sequence[tuple[Request, int]],
        arrived: Callable[[int, Completion], None],
        guard: BudgetGuard = FREE,
        refused: Callable[[int, RemoteError], None] | None = None,
        failed: Callable[[int, RemoteError], None] | None = None,
    ) -> bool:
        """Send a request for each (request, sample number) in `wanted`, and call `arrived(place, completion)` for each
        completion.

        Calls of `arrived` are serialized. If a request or a call of `arrived` fails, no further request is sent. Requests in
        flight are completed and their completions delivered. `collect_completions` then raises the first error.
        `guard.may_send` reserves money before each attempt to send a request. If `guard.may_send` returns False, no further
        request is sent, and `collect_completions` returns False.

        If `refused` is given, `refused` handles requests that the server rejects for their content (`REFUSED`):
        `collect_completions` calls `refused(place, error)` and continues with the other requests. In the same way, `failed`
        handles all other errors with `RemoteError.alone`.
        """
        self._check_supported(wanted)
        lock, stop = threading.Lock(), threading.Event()
        faults: list[BaseException] = []

        def handler_of(error: RemoteError) -> Callable[[int, RemoteError], None] | None:
            return refused if refused is not None and error.status in REFUSED else failed if error.alone else None

        def request_completion(place: int) -> Completion | RemoteError:
            try:
                return self._request_one_sample(*wanted[place], guard, place, stop)
            except RemoteError as error:
                if handler_of(error) is None:
                    raise
                return error

        def request_and_deliver(place: int) -> None:
            if stop.is_set():
                return
            try:
                with _stop_on_error(faults, stop):
                    outcome = request_completion(place)
                # If a callback raises, `stop` is set before another thread gets the lock.
                with lock, _stop_on_error(faults, stop):
                    if isinstance(outcome, Completion):
                        arrived(place, outcome)
                    elif handler := handler_of(outcome):
                        handler(place, outcome)
            finally:
                guard.settle_request(place)

        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="remote") as pool:
            try:
                for future in [pool.submit(request_and_deliver, place) for place in range(len(wanted))]:
                    future.result()
            except BaseException as error:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                if faults and isinstance(error, RorqualError):
                    if isinstance(faults[0], _BudgetExhausted):
                        return False
                    raise faults[0] from None
                raise
        return True

    # ---- one sample

    def _request_one_sample(
        self, request: Request, sample: int, guard: BudgetGuard, place: int, stop: threading.Event
    ) -> Completion:
        body = json.dumps(self._request_body(request, sample)).encode()
        return self._with_retries(
            self.url, lambda: self._parse_completion(self._send_request(self.url, body), request), guard, place, stop
        )

    def request_json(self, url: str, body: bytes | None = None, extra_headers: Mapping[str, str] | None = None) -> Any:
        """Send an auxiliary request with retries, and return the JSON of the reply.

        The HTTP method is POST if `body` is given, else GET.
        """
        return self._with_retries(url, lambda: self._send_request(url, body, extra_headers), FREE, 0, threading.Event())

    def _with_retries(
        self, url: str, attempt_once: Callable[[], T], guard: BudgetGuard, place: int, stop: threading.Event
    ) -> T:
        """Return the result of `attempt_once()`. If `attempt_once()` fails, it is retried up to `retries` times.

        Each attempt of request number `place` is charged to `guard`. Setting the event `stop` ends the retries.
        """
        for attempt in range(self.retries + 1):
            fault, wait, alone = "stopped because another request failed", 0.0, False
            remedy = "Check that the server runs and accepts this many concurrent requests, or lower concurrency."
            if stop.is_set():
                break
            if not guard.may_send(place):
                raise _BudgetExhausted("the budget does not allow another request", where=url)
            if stop.is_set():  # while `may_send` waited
                guard.count_unbilled_attempt(place)
                break
            try:
                return attempt_once()
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in UNSURE:
                    guard.count_unbilled_attempt(place)
                fault, wait = f"HTTP {error.code}: {_message_of(error)}", _retry_after(error.headers)
                if error.code not in RETRIED and (error.code < 500 or error.code in FINAL):
                    remedy = self._remedy_for_status(error.code)
                    raise RemoteError(fault, where=url, remedy=remedy, status=error.code) from None
                alone = error.code != 429
            except NoCompletion as error:
                guard.charge_failed_attempt(place, error.usage)
                fault, remedy, alone = str(error), error.remedy, True
            except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
                reason = getattr(error, "reason", error)
                alone = not isinstance(reason, UNSENT)
                if not alone:
                    guard.count_unbilled_attempt(place)
                fault = str(reason) or type(error).__name__
            if attempt < self.retries:
                stop.wait(min(max(wait, self.backoff * 2**attempt), LONGEST_WAIT))
        raise RemoteError(f"{fault} (tried {attempt + 1} times)", where=url, remedy=remedy, alone=alone)

    def _remedy_for_status(self, code: int) -> str:
        """Return a text that tells the user what to do about the HTTP status `code`."""
        known = {
            401: "Give the server's API key: api_key= in Python, RORQUAL_API_KEY on the command line.",
            403: "Give an API key that may use this model.",
            404: "Check the address, which often ends in /v1, and the name of the model.",
        }
        refused = "The server rejected this request: see its message. If it takes only shorter seeds, set seed_bits=31."
        return known.get(code, refused)

    def _send_request(self, url: str, body: bytes | None, extra_headers: Mapping[str, str] | None = None) -> Any:
        """Send one HTTP request and return the JSON of the reply. The HTTP method is POST if `body` is given, else GET."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "rorqual"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        call = urllib.request.Request(url, body, {**headers, **(extra_headers or {})})
        with self._opener.open(call, timeout=self.timeout) as reply:
            raw = reply.read(LARGEST_REPLY)
        try:
            return json.loads(raw)
        except RecursionError:
            raise NoCompletion("the JSON of the reply is nested too deeply", {}) from None
        except ValueError:
            # read(n) does not raise if the connection ends before Content-Length bytes: `length` is the number that is missing.
            if not raw or raw.lstrip()[:1] == b"{" or reply.length:
                raise HTTPException(f"the reply broke off after {len(raw)} bytes") from None
            raise NoCompletion(
                f"the reply is not JSON: {shorten(raw.decode('utf-8', 'replace'))}",
                {},
                "Give the address of the API, which often ends in /v1.",
            ) from None


class RemoteEngine(RemoteClient):
    """An engine that sends requests `POST {base_url}/chat/completions` to any OpenAI-compatible server.

    Thinking `on` and `off` are sent as `chat_template_kwargs`, which vLLM and SGLang accept. For thinking `auto`, no
    `chat_template_kwargs` are sent. `seed_bits` is the number of bits of a request's seed: 64 as in OpenAI's API, or 31 for a
    server that rejects larger seeds. `settings` are passed to `RemoteClient`.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        seed_bits: Bits = 64,
        **settings: Any,
    ) -> None:
        super().__init__(base_url, "/chat/completions", **settings)
        self.model = model
        self.seed_bits: Bits = seed_bits

    def generate(
        self, requests: Sequence[Request], *, progress: Callable[[int, int], None] | None = None
    ) -> list[list[Completion]]:
        """Return the `n` samples of each request.

        Raises the first error of a request that persists after all retries.
        """
        # Validate before `wanted` is built, because an invalid `n` may be huge.
        self._check_supported([(request, 0) for request in requests])
        wanted = [(request, sample) for request in requests for sample in range(request.params.n)]
        completions: dict[int, Completion] = {}

        def arrived(place: int, completion: Completion) -> None:
            completions[place] = completion
            if progress is not None:
                progress(len(completions), len(wanted))

        self.collect_completions(wanted, arrived)
        flat = iter([completions[place] for place in range(len(wanted))])
        return [[next(flat) for _ in range(request.params.n)] for request in requests]

    def seed_of(self, request: Request, sample: int) -> int:
        """Return the seed that is sent for sample number `sample` of a request."""
        return sample_seed(request.params.seed, sample, self.seed_bits)

    def _request_body(self, request: Request, sample: int) -> dict[str, Any]:
        params = request.params
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": content_json(m.content)} for m in request.messages],
            "seed": self.seed_of(request, sample),
        }
        body |= openai_fields(params)
        if request.thinking != "auto":
            on = request.thinking == "on"
            body["chat_template_kwargs"] = {"thinking": on, "enable_thinking": on}
        return body

    def _parse_completion(self, data: Any, request: Request) -> Completion:
        return parse_completion(data, request.params.prompt_logprobs)

    def _check_supported(self, wanted: Sequence[tuple[Request, int]]) -> None:
        requests = [request for request, _ in wanted]
        check_requests(requests)
        for number, request in enumerate(requests):
            if not request.messages:
                raise DataError(
                    "a remote endpoint takes messages, not token ids",
                    where=f"request {number}",
                    remedy="Set `messages`.",
                )


def check_requests(requests: Sequence[Request]) -> None:
    """Raise DataError for a request that no remote endpoint supports."""
    for number, request in enumerate(requests):
        check_params(request.params, vocab_size=INT32 + 1, where=f"request {number}")
        if request.adapter:
            raise DataError(
                "a remote endpoint takes no adapter",
                where=f"request {number}, adapter",
                remedy="Set the client's model to the name under which the endpoint serves the adapter.",
            )
        if request.embeds is not None:
            raise DataError(
                "a remote endpoint does not take embeddings",
                where=f"request {number}, embeds",
                remedy="Send the image as an image part of a message, or use a local model.",
            )


def _retry_after(headers: Headers) -> float:
    try:
        return max(0.0, float(headers.get("Retry-After", 0)))  # 0 for NaN
    except ValueError:  # the header is a date, which is not supported: use the backoff
        return 0.0


def _message_of(error: urllib.error.HTTPError) -> str:
    try:
        raw = error.read(4096).decode("utf-8", "replace")
    except (OSError, HTTPException):
        raw = ""
    try:
        data = json.loads(raw)
        detail = data["error"]
        raw = detail["message"] if isinstance(detail, dict) else detail
    except (ValueError, KeyError, TypeError):
        pass
    return shorten(str(raw)) or error.reason


LARGEST_REPLY = 64 * 2**20
THINK, END_THINK = "<think>", "</think>"
FINISH_REASONS: Mapping[str, Literal["stop", "length"]] = {
    **dict.fromkeys(("", "stop", "eos", "eos_token", "stop_sequence", "end_turn"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_length", "max_output_tokens", "model_length"), "length"),
}
"""Finish reasons of a complete answer, and of an answer that is cut off, in lower case; "" stands for a missing one. A reply with
another finish reason has no answer: the server interrupted or filtered it. A reply with tool calls has no answer either, because
the client's requests carry no tools."""


class NoCompletion(Exception):
    """Raised if a reply with status 200 has no completion. `usage` holds the token counts that the server reports for
    the reply."""

    remedy = "Give the address of a server with OpenAI's chat completions API."

    def __init__(self, what: str, usage: Mapping[str, int], remedy: str = remedy) -> None:
        super().__init__(what)
        self.usage, self.remedy = usage, remedy


def parse_completion(data: Any, prompt_logprobs: int | None) -> Completion:
    """Return the first choice of a reply's JSON as a completion. Raises NoCompletion if the reply has no choice with a
    message."""
    try:
        choice = data["choices"][0]
        message = choice["message"]
        content = text_of(message.get("content"))
        separate_reasoning = message.get("reasoning_content") or message.get("reasoning")
        ended, refusal = choice.get("finish_reason"), message.get("refusal")
        scores = parse_prompt_logprobs(data.get("prompt_logprobs"), prompt_logprobs)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise NoCompletion(
            f"the reply has no choices[0].message: {shorten(json.dumps(data))}", usage_of(data)
        ) from None
    reasoning: str | None
    # Some servers return the reasoning in its own field but leave `</think>` in front of the content.
    if separate_reasoning:
        text, reasoning = content.lstrip("\n").removeprefix(END_THINK).lstrip("\n"), str(separate_reasoning)
    else:
        text, reasoning = split_reasoning(content)
    reason = FINISH_REASONS.get("" if ended is None else str(ended).casefold())
    no_answer = reason is None or (refusal and not content)
    return Completion(
        prompt_ids=(),
        token_ids=[],
        logprobs=[],
        finish_reason=reason or "stop",
        text=replace_lone_surrogates(text),
        reasoning=None if reasoning is None else replace_lone_surrogates(reasoning),
        usage=usage_of(data),
        error=f"the server gave no answer: {shorten(str(refusal or choice.get('error') or ended))}"
        if no_answer
        else "",
        prompt_logprobs=scores and scores[0],
        prompt_top_logprobs=scores and scores[1],
        model=replace_lone_surrogates(name) if isinstance(name := data.get("model"), str) else "",
    )


def usage_of(data: Any) -> dict[str, int]:
    """Return the token counts in a reply's `usage`: the integers of at most 31 bits, and `reasoning_tokens` from
    `completion_tokens_details`. Return {} if the reply has no `usage`.

    Some servers count the reasoning in `total_tokens`, but not in `completion_tokens`. `completion_tokens` is therefore at least
    `total_tokens - prompt_tokens`.
    """
    usage = data.get("usage") if isinstance(data, dict) else None
    counts = usage if isinstance(usage, dict) else {}
    details = counts.get("completion_tokens_details")
    if isinstance(details, dict) and "reasoning_tokens" in details:
        counts = counts | {"reasoning_tokens": details["reasoning_tokens"]}
    usage = {name: value for name, value in counts.items() if type(value) is int and abs(value) <= INT32}
    if "prompt_tokens" in usage and "total_tokens" in usage:
        generated = usage["total_tokens"] - usage["prompt_tokens"]
        usage["completion_tokens"] = max(usage.get("completion_tokens", generated), generated)
    return usage


def shorten(text: str) -> str:
    """Return the text on one line.

    A text of more than 300 characters is cut after 300 characters, and "..." is appended.
    """
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + "..."


def replace_lone_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def text_of(content: Any) -> str:
    """Return the text of a message's content, which is a string, None or a list of parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError("content is neither a string nor a list of parts")


PromptLogprobs = tuple[list[float | None], list[list[tuple[int, float]]] | None]


def parse_prompt_logprobs(data: Any, top: int | None) -> PromptLogprobs | None:
    """Parse vLLM's `prompt_logprobs` into the log-probability of each prompt token and the `top` most likely tokens at the
    position of each prompt token.

    Returns None if the request did not set `prompt_logprobs` or the server returned no `prompt_logprobs`. In vLLM's
    `prompt_logprobs`, each entry lists the prompt token first and gives the rank of each listed token.
    """
    if top is None or data is None:
        return None
    places = [[(int(id_), one["logprob"], one.get("rank")) for id_, one in (place or {}).items()] for place in data]
    own = [place[0][1] if place else None for place in places]
    ranked = [sorted((rank, id_, value) for id_, value, rank in place if rank and rank <= top) for place in places]
    return own, [[(id_, value) for _, id_, value in place] for place in ranked] if top else None


def split_reasoning(content: str) -> tuple[str, str | None]:
    """Split a reply into answer and reasoning.

    The reply may lack `<think>`, because the prompt may end with `<think>`. A reply that is cut off during the reasoning has no
    answer. A reply without `<think>` and `</think>` is an answer without reasoning: the server removed the reasoning, or the
    model did not think.
    """
    head, mark, tail = content.partition(END_THINK)
    if mark:
        return tail.lstrip("\n"), head.replace(THINK, "", 1).strip("\n")
    if content.lstrip().startswith(THINK):
        return "", content.lstrip().removeprefix(THINK).strip("\n")
    return content, None
