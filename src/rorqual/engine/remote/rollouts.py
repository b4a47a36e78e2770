"""Several rollout engines that sample for one trainer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rorqual.core.errors import RorqualError
from rorqual.data.chat import ChatFormat
from rorqual.engine.remote.engine import RemoteError
from rorqual.engine.remote.rollout import RemoteRolloutEngine
from rorqual.engine.request import Completion, Request
from rorqual.engine.rollout_engine import Put, RolloutEngine, iterate_completions
from rorqual.model import Decoder


class RolloutEngines:
    """A rollout engine that divides requests among `engines`, in proportion to their slots.

    An engine that fails is left out until the next `update`, so an engine that was started again gets the new weights and samples
    again. The samples that it had not returned are missing, and the trainer requests them from the other engines. `say` tells of a
    lost engine. If all engines have failed, their last error is raised.
    """

    def __init__(self, engines: Sequence[RemoteRolloutEngine], say: Callable[[str], None] = print) -> None:
        self.engines, self.say = list(engines), say
        self.version = max(engine.version for engine in engines)
        self._lost: dict[RemoteRolloutEngine, RorqualError] = {}

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield samples as they finish. `Completion.request` is the position in `requests`."""
        left = [engine for engine in self.engines if engine not in self._lost]
        if not left:
            raise next(reversed(self._lost.values()))
        places: dict[RemoteRolloutEngine, list[int]] = {engine: [] for engine in left}
        load = dict.fromkeys(left, 0.0)
        for number, request in enumerate(requests):
            engine = min(left, key=lambda one: load[one] + request.params.n / one.concurrency)
            load[engine] += request.params.n / engine.concurrency
            places[engine].append(number)

        def collect_samples(put: Put, closed: threading.Event) -> None:
            with ThreadPoolExecutor(len(left)) as pool:
                list(pool.map(lambda engine: collect(engine, put, closed), left))

        def collect(engine: RemoteRolloutEngine, put: Put, closed: threading.Event) -> None:
            own = places[engine]
            with self._dropping(engine):
                for completion in engine.generate([requests[number] for number in own]) if own else ():
                    if closed.is_set():
                        return
                    if completion.policy_version < engine.version:
                        raise RemoteError("the server started again and has lost the weights", where=engine.url)
                    put(replace(completion, request=own[completion.request]))

        return iterate_completions(collect_samples)

    def update(self, weights: Decoder, version: int) -> None:
        """Upload `weights` to all engines, also to those that failed before."""
        self._lost.clear()

        def upload(engine: RemoteRolloutEngine) -> None:
            with self._dropping(engine):
                engine.update(weights, version)

        with ThreadPoolExecutor(len(self.engines)) as pool:
            list(pool.map(upload, self.engines))
        if len(self._lost) == len(self.engines):
            raise next(reversed(self._lost.values()))
        self.version = version

    @contextmanager
    def _dropping(self, engine: RemoteRolloutEngine) -> Iterator[None]:
        """Leave out `engine` if the `with` block raises an error that a user can fix, such as a lost connection."""
        try:
            yield
        except RorqualError as error:
            self._lost[engine] = error
            self.say(f"rollout engine {engine.url} is left out until the next step: {error}")


def connect(addresses: Sequence[str], chat: ChatFormat, *, api_keys: Sequence[str], **settings: Any) -> RolloutEngine:
    """Return the rollout engine of one or several servers. `api_keys` has one rollout key for all, or one for each address.

    A server that does not answer is left out. An error is raised if no server answers, or if one refuses the request.
    """
    keys = api_keys if len(api_keys) == len(addresses) else [api_keys[0]] * len(addresses)
    engines, silent = list[RemoteRolloutEngine](), list[RemoteError]()
    for address, key in zip(addresses, keys, strict=True):
        try:
            engines.append(RemoteRolloutEngine(address, chat, api_key=key, **settings))
        except RemoteError as error:
            if error.status:
                raise
            print(f"a rollout engine is left out until the next start: {error}")
            silent.append(error)
    if not engines:
        raise silent[0]
    return engines[0] if len(engines) == 1 else RolloutEngines(engines)
