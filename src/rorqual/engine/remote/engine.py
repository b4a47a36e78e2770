"""An OpenAI-compatible address behind the engine's interface: to measure any served model, to let it teach or judge.

Standard library only. A remote model has no log-probabilities and no expert choices of ours: what it returns can be
graded, never trained on by policy gradient.
"""

from __future__ import annotations

import json
import re
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
from dataclasses import dataclass
from email.message import Message as Headers
from http.client import HTTPException
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.core.parts import content_json
from rorqual.core.sampling import INT32, PARAMS, check_params
from rorqual.engine.request import Completion, Grammar, Request, SamplingParams
from rorqual.engine.seeds import Bits, sample_seed

ALWAYS = ("max_tokens", "temperature", "top_p")
"""Parameters that are sent at any value: an address has defaults of its own for them."""
OWN_FORMS = ("seed", "n", "top_logprobs", "grammar")
"""Parameters that are not sent by their name alone: each sample is a request with a seed of its own."""


def fields_of(params: SamplingParams) -> dict[str, Any]:
    """How to sample, under the names that OpenAI's API, or vLLM's and SGLang's beside it, have for it. What is at its default is not said."""
    found = dict[str, Any]()
    for name, param in PARAMS.items():
        value = getattr(params, name)
        if name in ALWAYS or (name not in OWN_FORMS and value != param.default):
            found[name] = param.type.write(value)
    if params.top_logprobs:
        found |= {"logprobs": True, "top_logprobs": params.top_logprobs}
    return found | (_grammar(params.grammar) if params.grammar else {})


def _grammar(grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "calls":
        raise DataError(
            "a request to an address carries no tools, so that none can be called",
            where="grammar",
            remedy="Ask for JSON by the function's schema: kind json_schema.",
        )
    if grammar.kind == "json":
        return {"response_format": {"type": "json_object"}}
    if grammar.kind == "regex":
        return {"guided_regex": grammar.source}
    try:
        source = json.loads(grammar.source)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where="grammar", remedy="Write its source as JSON.") from None
    if grammar.kind == "choice":
        return {"guided_choice": source}
    schema = {"name": "reply", "schema": source, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


T = TypeVar("T")
RETRIED = frozenset({408, 409, 425, 429})
FINAL = frozenset({501, 505})
"""Of the server's own errors those that the same request meets again."""
REFUSED = frozenset({400, 413, 422})
"""What a server says of a request that is itself at fault: others may well be answered."""
UNSURE = frozenset({408, 409, 425})
"""Errors below 500 that may come after work was done. Every other one of them says that the request was turned away."""
UNSENT = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
"""What is raised before a request is sent."""
LONGEST_WAIT = 60.0


class RemoteError(RorqualError):
    """An address that does not answer, or not as agreed. `status`: what it answered by HTTP, 0 where it did not refuse.

    `alone`: one request failed, after its retries, and others may well be answered: a server's error, a timeout, a broken connection, or a
    reply that is no completion. Not alone are a wrong key, model or address, a rate limit, and a server that is not there.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "", status: int = 0, alone: bool = False) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.status, self.alone = status, alone or status in REFUSED


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    # urllib would carry the key along to wherever the answer points.
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Toll(Protocol):
    """Who pays. Called by several threads at once."""

    def enter(self, place: int) -> bool:
        """Whether the request at `place` may be sent (again); asked before each try, and may wait for others to end."""

    def refused(self, place: int) -> None:
        """The try will not be billed: it was never sent, or the server turned it away (HTTP 3xx and 4xx but `UNSURE`)."""

    def used(self, place: int, usage: Mapping[str, int]) -> None:
        """The try brought no completion, and the server counts these tokens for it."""

    def left(self, place: int) -> None:
        """The request is over, whatever came of it; what may have been billed without an answer has been."""


class _Free:
    def enter(self, place: int) -> bool:
        return True

    def refused(self, place: int) -> None:
        pass

    def used(self, place: int, usage: Mapping[str, int]) -> None:
        pass

    def left(self, place: int) -> None:
        pass


FREE: Toll = _Free()


class _Unpaid(RorqualError):
    """The toll let a request not through."""


@contextmanager
def _noting(faults: list[BaseException], stop: threading.Event) -> Iterator[None]:
    """Keep what is raised, and stop the other threads, which only say that they were stopped."""
    try:
        yield
    except BaseException as error:
        faults.append(error)
        stop.set()
        raise


@dataclass(frozen=True)
class _Gate:
    """One request's way to the server."""

    toll: Toll
    place: int
    stop: threading.Event


class RemoteClient(ABC):
    """Sends one HTTP request a sample to `url`, `concurrency` at a time. A subclass says what is asked and how the reply is read.

    `timeout` in seconds for each try. `retries`: further tries after 408, 409, 425, 429, 5xx, a broken connection or a reply that is no
    completion (a page of HTML, no choices), with waits of `backoff` seconds, doubled each time, or what `Retry-After` says.
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
                f"'{base_url}' is no address of a server",
                where="base_url",
                remedy="Give one such as http://localhost:8000/v1.",
            )
        if concurrency < 1 or retries < 0 or timeout <= 0:
            raise ConfigError(
                f"concurrency={concurrency}, retries={retries}, timeout={timeout}",
                where="remote",
                remedy="At least 1 at a time, no fewer than 0 retries, a timeout above 0 seconds.",
            )
        self.url = base_url.rstrip("/") + path
        self.concurrency, self.timeout = concurrency, timeout
        self.retries, self.backoff = retries, backoff
        self._key = api_key
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if parts.hostname in ("localhost", "127.0.0.1", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    @abstractmethod
    def _body(self, request: Request, sample: int) -> dict[str, Any]:
        """The JSON that asks for one sample."""

    @abstractmethod
    def _read(self, data: Any, request: Request) -> Completion:
        """The completion that a reply's JSON holds; `NoCompletion` where there is none."""

    @abstractmethod
    def _check(self, wanted: Sequence[tuple[Request, int]]) -> None:
        """Refuse what the address cannot be asked, before anything is sent."""

    def collect(
        self,
        wanted: Sequence[tuple[Request, int]],
        arrived: Callable[[int, Completion], None],
        toll: Toll = FREE,
        refused: Callable[[int, RemoteError], None] | None = None,
        failed: Callable[[int, RemoteError], None] | None = None,
        first_alone: bool = False,
    ) -> bool:
        """Ask for the given (request, number of the sample) and hand each answer over as it comes: `arrived(place, completion)`.

        One call of `arrived` at a time, in the order of arrival. The first failure, of a request or of `arrived`, stops
        everything that is not under way yet; what is under way is waited for and handed over, then the failure is raised.
        `toll` is asked before each try; False is returned where it let one not through, and nothing further was sent.
        With `refused(place, error)` the others go on where the server refuses a request for what it asks (`REFUSED`), with
        `failed(place, error)` also where it fails `alone` in another way. `first_alone`: the first is waited for before any other is sent.
        """
        self._check(wanted)
        lock, stop = threading.Lock(), threading.Event()
        faults: list[BaseException] = []

        def told(error: RemoteError) -> Callable[[int, RemoteError], None] | None:
            return refused if refused is not None and error.status in REFUSED else failed if error.alone else None

        def answer(place: int) -> Completion | RemoteError:
            try:
                return self._complete(*wanted[place], _Gate(toll, place, stop))
            except RemoteError as error:
                if told(error) is None:
                    raise
                return error

        def one(place: int) -> None:
            if stop.is_set():
                return
            try:
                with _noting(faults, stop):
                    found = answer(place)
                with lock, _noting(faults, stop):  # stopped before another thread has the lock, and goes on
                    if isinstance(found, Completion):
                        arrived(place, found)
                    elif tell := told(found):
                        tell(place, found)
            finally:
                toll.left(place)

        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="remote") as pool:
            try:
                for part in (range(first_alone), range(first_alone, len(wanted))):
                    for future in [pool.submit(one, place) for place in part]:
                        future.result()
            except BaseException as error:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                if faults and isinstance(error, RorqualError):
                    if isinstance(faults[0], _Unpaid):
                        return False
                    raise faults[0] from None
                raise
        return True

    # ---- one sample

    def _complete(self, request: Request, sample: int, gate: _Gate) -> Completion:
        body = json.dumps(self._body(request, sample)).encode()
        return self._tried(gate, self.url, lambda: self._read(self._sent(self.url, body), request))

    def exchange(self, url: str, body: bytes | None = None, more: Mapping[str, str] | None = None) -> Any:
        """The reply's JSON to one request that asks for no sample, after as many tries as it needs and may have."""
        return self._tried(_Gate(FREE, 0, threading.Event()), url, lambda: self._sent(url, body, more))

    def _tried(self, gate: _Gate, url: str, once: Callable[[], T]) -> T:
        """What `once` returns, after as many tries as it needs and may have."""
        for attempt in range(self.retries + 1):
            fault, wait, alone = "stopped, since another request failed", 0.0, False
            remedy = "See that the server runs and can take this many requests at once, or lower concurrency."
            if gate.stop.is_set():
                break
            if not gate.toll.enter(gate.place):
                raise _Unpaid("no money for another request", where=url)
            try:
                return once()
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in UNSURE:
                    gate.toll.refused(gate.place)
                fault, wait = f"HTTP {error.code}: {_message_of(error)}", _retry_after(error.headers)
                if error.code not in RETRIED and (error.code < 500 or error.code in FINAL):
                    remedy = self._remedy(error.code, fault)
                    raise RemoteError(fault, where=url, remedy=remedy, status=error.code) from None
                alone = error.code != 429
            except NoCompletion as error:
                gate.toll.used(gate.place, error.usage)
                fault, remedy, alone = str(error), error.remedy, True
            except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
                reason = getattr(error, "reason", error)
                alone = not isinstance(reason, UNSENT)
                if not alone:
                    gate.toll.refused(gate.place)
                fault = str(reason) or type(error).__name__
            if attempt < self.retries:
                gate.stop.wait(min(max(wait, self.backoff * 2**attempt), LONGEST_WAIT))
        raise RemoteError(f"{fault} (tried {attempt + 1} times)", where=url, remedy=remedy, alone=alone)

    def _remedy(self, code: int, fault: str) -> str:
        return _remedy(code)

    def _sent(self, url: str, body: bytes | None, more: Mapping[str, str] | None = None) -> Any:
        """The reply's JSON to a body that is posted, or to a GET without one."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "rorqual"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        call = urllib.request.Request(url, body, {**headers, **(more or {})})
        end = time.monotonic() + self.timeout
        with self._opener.open(call, timeout=self.timeout) as reply:
            raw = read_until(reply, end)
            promised = reply.headers.get("Content-Length", "")
        try:
            return json.loads(raw)
        except RecursionError:
            raise NoCompletion("the answer is JSON that nests without end", {}) from None
        except ValueError:
            if (
                not raw or raw.lstrip()[:1] == b"{" or (promised.isdigit() and len(raw) < int(promised))
            ):  # read1(n) is silent about it
                raise HTTPException(f"the answer broke off after {len(raw)} bytes") from None
            raise NoCompletion(
                f"the answer is not JSON: {shorten(raw.decode('utf-8', 'replace'))}",
                {},
                "Give the address of the API, which often ends in /v1.",
            ) from None


class RemoteEngine(RemoteClient):
    """`POST {base_url}/chat/completions` of any server that speaks OpenAI's API.

    Thinking `on` and `off` are sent as `chat_template_kwargs`, as vLLM and SGLang take them; `auto` sends nothing. `extra` is merged into
    each body. `seed_bits`: 64, as OpenAI's API documents seeds, or 31 for a server that refuses those; either way one seed is one request.
    `settings`: those of `RemoteClient`.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        extra: Mapping[str, Any] | None = None,
        seed_bits: Bits = 64,
        **settings: Any,
    ) -> None:
        super().__init__(base_url, "/chat/completions", **settings)
        self.model, self.extra = model, dict(extra or {})
        self.seed_bits: Bits = seed_bits

    def generate(
        self, requests: Sequence[Request], *, progress: Callable[[int, int], None] | None = None
    ) -> list[list[Completion]]:
        """For each request its `n` samples. The first failure that retries do not mend stops everything."""
        self._check([(request, 0) for request in requests])  # before a huge `n` makes a list
        wanted = [(request, sample) for request in requests for sample in range(request.params.n)]
        found: dict[int, Completion] = {}

        def arrived(place: int, completion: Completion) -> None:
            found[place] = completion
            if progress is not None:
                progress(len(found), len(wanted))

        self.collect(wanted, arrived)
        flat = iter([found[place] for place in range(len(wanted))])
        return [[next(flat) for _ in range(request.params.n)] for request in requests]

    def _body(self, request: Request, sample: int) -> dict[str, Any]:
        params = request.params
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": content_json(m.content)} for m in request.messages],
            "seed": sample_seed(params.seed, sample, self.seed_bits),
        }
        body |= fields_of(params)
        if request.thinking != "auto":
            on = request.thinking == "on"
            body["chat_template_kwargs"] = {"thinking": on, "enable_thinking": on}
        return body | self.extra

    def _read(self, data: Any, request: Request) -> Completion:
        return completion_of(data, request.params.prompt_logprobs)

    def _check(self, wanted: Sequence[tuple[Request, int]]) -> None:
        requests = [request for request, _ in wanted]
        check_requests(requests)
        for number, request in enumerate(requests):
            if not request.messages:
                raise DataError(
                    "it has token ids and no messages, and an address takes messages only",
                    where=f"request {number}",
                    remedy="Fill `messages`.",
                )

    def _remedy(self, code: int, fault: str) -> str:
        if self.seed_bits == 64 and re.search(r"\bseed\b", fault):
            return "If its seeds are shorter, give seed_bits=31."
        return super()._remedy(code, fault)


def check_requests(requests: Sequence[Request]) -> None:
    """Refuse what no address can be asked, before anything is sent."""
    for number, request in enumerate(requests):
        check_params(request.params, vocab_size=INT32 + 1, where=f"request {number}")
        if request.embeds is not None:
            raise DataError(
                "an address takes no embeddings",
                where=f"request {number}, embeds",
                remedy="Send a picture as a part of a message, or use a local model.",
            )


def _retry_after(headers: Headers) -> float:
    try:
        return float(headers.get("Retry-After", 0))
    except ValueError:  # a date: the backoff decides
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


def _remedy(code: int) -> str:
    known = {
        401: "Give the server's key as api_key.",
        403: "Give a key that may use this model.",
        404: "Check the address, which often ends in /v1, and the name of the model.",
    }
    return known.get(code, "The server refuses this request: its message says why.")


LARGEST_REPLY = 64 * 2**20
THINK, END_THINK = "<think>", "</think>"
NO_ANSWER = frozenset({"content_filter", "tool_calls", "function_call", "error"})
"""Ends of what is no answer to a request that carries no tools."""


class NoCompletion(Exception):
    """A reply of status 200 that holds no completion. `remedy`: what a user can do; `usage`: the tokens that it counts all the same."""

    remedy = "The address must speak OpenAI's chat completions."

    def __init__(self, what: str, usage: Mapping[str, int], remedy: str = remedy) -> None:
        super().__init__(what)
        self.usage, self.remedy = usage, remedy


def completion_of(data: Any, prompt_logprobs: int | None) -> Completion:
    """The first choice of a reply's JSON; `NoCompletion` where there is none."""
    try:
        choice = data["choices"][0]
        message = choice["message"]
        content = text_of(message.get("content"))
        given = message.get("reasoning_content") or message.get("reasoning")
        ended, refusal = choice.get("finish_reason"), message.get("refusal")
        scores = prompt_scores(data.get("prompt_logprobs"), prompt_logprobs)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise NoCompletion(
            f"the answer has no choices[0].message: {shorten(json.dumps(data))}", usage_of(data)
        ) from None
    reasoning: str | None
    if given:  # apart, and some servers leave `</think>` in front of the content all the same
        text, reasoning = content.lstrip("\n").removeprefix(END_THINK).lstrip("\n"), str(given)
    else:
        text, reasoning = split_reasoning(content)
    fault = ""
    if ended in NO_ANSWER or (refusal and not content):
        fault = f"the server gave no answer: {shorten(str(refusal or choice.get('error') or ended))}"
    return Completion(
        prompt_ids=(),
        token_ids=[],
        logprobs=[],
        finish_reason="length" if ended == "length" else "stop",
        text=writable(text),
        reasoning=None if reasoning is None else writable(reasoning),
        usage=usage_of(data),
        error=fault,
        prompt_logprobs=scores and scores[0],
        prompt_top_logprobs=scores and scores[1],
        model=writable(name) if isinstance(name := data.get("model"), str) else "",
    )


def usage_of(data: Any) -> dict[str, int]:
    """The whole numbers of a reply's `usage`; none where it has no such object."""
    usage = data.get("usage") if isinstance(data, dict) else None
    return {name: value for name, value in usage.items() if type(value) is int} if isinstance(usage, dict) else {}


def shorten(text: str) -> str:
    """One line of at most 300 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + "..."


def read_until(reply: Any, end: float) -> bytes:
    """The body, where it is whole by `end`: a socket's timeout is for each piece alone."""
    raw = bytearray()
    while len(raw) < LARGEST_REPLY and (piece := reply.read1(1 << 16)):
        raw += piece
        if time.monotonic() > end:
            raise TimeoutError(f"the answer was not whole in time, of which {len(raw)} bytes came")
    return bytes(raw)


def writable(text: str) -> str:
    """Half a surrogate pair, which no file can hold, is U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def text_of(content: Any) -> str:
    """The text of a message's content: a string, nothing, or a list of parts of which some are text."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError("content is neither text nor parts")


Scores = tuple[list[float | None], list[list[tuple[int, float]]] | None]


def prompt_scores(data: Any, top: int | None) -> Scores | None:
    """Of vLLM's `prompt_logprobs`: for each token of the prompt its log-probability, and the `top` likeliest tokens; None where nobody asked.

    At each place the token itself comes first, and a rank says which are the likeliest.
    """
    if top is None or data is None:
        return None
    places = [[(int(id_), one["logprob"], one.get("rank")) for id_, one in (place or {}).items()] for place in data]
    own = [place[0][1] if place else None for place in places]
    ranked = [sorted((rank, id_, value) for id_, value, rank in place if rank and rank <= top) for place in places]
    return own, [[(id_, value) for _, id_, value in place] for place in ranked] if top else None


def split_reasoning(content: str) -> tuple[str, str | None]:
    """Answer and reasoning of a reply that holds both.

    `<think>` may stand in the prompt and so be missing here; a reply cut off while thinking has no answer. A reply with
    neither mark is an answer: the server took the reasoning away, or there was none.
    """
    head, mark, tail = content.partition(END_THINK)
    if mark:
        return tail.lstrip("\n"), head.replace(THINK, "", 1).strip("\n")
    if content.lstrip().startswith(THINK):
        return "", content.lstrip().removeprefix(THINK).strip("\n")
    return content, None
