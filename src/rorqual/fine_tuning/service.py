"""The state of a server with the fine-tuning API: the store, the queue, and the tuned models beside the base model."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from fastapi import Request, Response

from rorqual.core.errors import ConfigError
from rorqual.core.lock import Lock, acquire_lock
from rorqual.core.records import NO_DEFAULTS, RunDir
from rorqual.fine_tuning.queue import JobQueue
from rorqual.fine_tuning.store import CHECKPOINT, LADDER, Job, TuneStore
from rorqual.serve.errors import ApiError, bad_request
from rorqual.serve.logs import say
from rorqual.serve.metrics import Metric
from rorqual.serve.schemas import parse_body
from rorqual.serve.service import ModelService, Service
from rorqual.serve.validation_errors import describe_value

ALL = "*"
MOST_DEPTH = 3
"""A model that was tuned from `MOST_DEPTH` others, one after another, is no base: each adds a rank of `recipe.R` to the adapter."""
MOST_ANSWERERS = 4
"""The number of jobs without a language model whose answerers stay in memory."""


class LadderService(Protocol):
    """The service of what a ladder chose (`teach.serving.AnswererService`), which needs torch."""

    def parse(self, parts: list[bytes]) -> Any: ...
    def reserve_queue_place(self, tenant: str) -> AbstractContextManager[None]: ...
    async def respond(self, request: Request, prompt: Any) -> Response: ...
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TuneService(ModelService):
    """A server of a base model, and of the models that its jobs trained.

    `bases`: the names of base models that clients may give, and the folder of each name's run, or "" for the ladder; `*` is every
    other name. `tenant_bytes`: maximum bytes of a tenant's files, jobs and models. `lock`: the lock of the store's folder.
    `load_ladder` returns the service of a folder that `rorqual teach` wrote, from the folder, the number of threads, and the fields
    of `Service` with `queue`. `answerers`: the loaded models of jobs without a language model, by the ids of the jobs.
    """

    bases: Mapping[str, str]
    tenant_bytes: int
    store: TuneStore
    queue: JobQueue
    lock: Lock
    load_ladder: Callable[..., LadderService]
    answerers: dict[str, LadderService] = field(default_factory=dict)

    @classmethod
    def extend(
        cls,
        service: ModelService,
        base: RunDir,
        folder: Path,
        *,
        names: Mapping[str, str],
        tenant_bytes: int,
        at_once: int,
        memory: int,
        threads: int,
        load_ladder: Callable[..., LadderService],
    ) -> TuneService:
        """Return `service` with the fine-tuning API. `names`: further names of base models, and what each means: `LADDER`, or "" for
        `base`. `at_once`, `tenant_bytes`, `memory` and `threads` are those of `JobQueue`.

        Raises ConfigError if the folder cannot be used.
        """
        folder = folder.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write here: {error.strerror}", where=f"tune={folder}", remedy="Give another folder."
            ) from None
        lock = acquire_lock(folder, "Give each server its own folder.")
        store = TuneStore(folder)
        queue = JobQueue(store, at_once=at_once, tenant_bytes=tenant_bytes, memory=memory, threads=threads)
        known = {one.name: getattr(service, one.name) for one in fields(service)}
        run = str(base.path.absolute())
        bases = {service.name: run} | {name: "" if meant == LADDER else run for name, meant in names.items()}
        bases.setdefault(LADDER, "")
        own: dict[str, Any] = {"bases": bases, "tenant_bytes": tenant_bytes, "store": store, "queue": queue}
        return cls(**known, **own, lock=lock, load_ladder=load_ladder)

    def tasks(self) -> Sequence[Coroutine[Any, Any, None]]:
        return [*super().tasks(), self.queue.run()]

    def close(self) -> None:
        for answerer in self.answerers.values():
            answerer.close()
        self.lock.close()
        super().close()

    async def prepare_engine(self) -> None:
        try:
            await super().prepare_engine()
        except ApiError as error:
            if error.status != 422:
                raise
            say(f"the model '{self.name}' cannot be loaded: {error}")
            problem = f"`model` is {describe_value(self.name)}, which this server cannot load. Was it trained from another base?"
            raise ApiError(
                422, f"{problem} The operator finds the reason in the log.", param="model", code=error.code
            ) from None

    async def forget_model(self, job: Job, step: str) -> None:
        """Delete the model of a job's `step`, or all its models if the job `is_deleted`, also from the engine's memory."""
        names = [known for known in self.bridge.adapters if known.partition(CHECKPOINT)[0] == job.model_name]
        for name in names if job.is_deleted else [name for name in names if name.partition(CHECKPOINT)[2] == step]:
            with suppress(ApiError):  # an unfinished request uses it, or the engine is restarting
                await self.bridge.unload_adapter(name)
        self.answerers.pop(job.id, None)
        folder = self.store.folder(job.id)
        for models in (folder.models, folder.taught) if job.is_deleted else (folder.model(int(step)).path,):
            shutil.rmtree(models, ignore_errors=True)

    def base_of(self, name: str, tenant: str) -> tuple[str, Path | None, int]:
        """Return `Job.base` for the base model that clients call `name`, the folder of the tuned model if it is one, and `Job.depth`.

        The base may be a tuned model of the tenant, or one of its checkpoints. Raises ApiError if it is not offered.
        """
        job = self.tuned_job(name.partition(CHECKPOINT)[0], tenant)
        if job is not None and job.has_model and (run := self._tuned_run(job, name)) is not None:
            if job.base == self.bases[self.name] and job.depth < MOST_DEPTH:
                return job.base, run.path, job.depth + 1
            older = f"the last of {job.depth + 1} models that were tuned one after another. Start from an earlier one"
            reason = older if job.depth >= MOST_DEPTH else "which was tuned from another run than the served one"
            raise bad_request(f"`model` is {describe_value(name)}, {reason}.", "model", "unsupported_value")
        other = None if name.startswith("ft:") or CHECKPOINT in name else self.bases.get(ALL)
        base = self.bases.get(name, other)
        if base is None:
            problem = f"`model` is {describe_value(name)}, which is not offered for fine-tuning"
            remedy = f"Use one of: {', '.join(self.bases)}, or a tuned model that is not a ladder."
            raise ApiError(
                404,
                f"{problem}. {remedy} The operator can add names by tune_names=.",
                param="model",
                code="model_not_found",
            )
        return base, None, 0

    def _tuned_run(self, job: Job, name: str) -> RunDir | None:
        """Return the run of a job's model, or of one of its checkpoints, by its name, or None if there is none."""
        _, separator, step = name.partition(CHECKPOINT)
        folder = self.store.folder(job.id)
        steps = folder.kept_steps() if separator or job.has_model else []
        kept = [one for one in steps if one == step] if separator else steps[-1:]
        return folder.model(int(kept[0])) if kept else None

    def tuned_job(self, name: str, tenant: str) -> Job | None:
        """Return the tenant's job whose model is called `name`, unless the model was deleted."""
        own = (job for job in [*self.store.jobs.values()] if job.tenant == tenant and not job.is_deleted)
        return next((job for job in own if job.model_name == name), None)

    def for_model(self, name: str, tenant: str) -> ModelService:
        if name != ALL and self.bases.get(name):
            return self if name == self.name else replace(self, name=name)
        job = self.tuned_job(name.partition(CHECKPOINT)[0], tenant)
        if job is not None and not job.base and job.has_model:
            raise bad_request(f"`model` is {describe_value(name)}, which answers chat completions alone.", "model")
        if job is not None and (run := self._tuned_run(job, name)) is not None:
            return replace(self, name=name, adapter=str(run.checkpoint()), task=NO_DEFAULTS)
        return super().for_model(name, tenant)

    def other_responder(self, body: bytes, tenant: str) -> Callable[[Request], Awaitable[Response]] | None:
        ladders = [
            job for job in [*self.store.jobs.values()] if job.tenant == tenant and job.has_model and not job.base
        ]
        wanted = parse_body(body).get("model") if ladders else None
        job = next((job for job in ladders if job.model_name == wanted), None)
        if job is None:
            return None
        service = self._answerer_service(job)
        prompt = service.parse([body])

        async def respond(request: Request) -> Response:
            with service.reserve_queue_place(tenant):
                return await service.respond(request, prompt)

        return respond

    def _answerer_service(self, job: Job) -> LadderService:
        """Return the service of what a ladder chose. `MOST_ANSWERERS` stay in memory, those that were used last."""
        found = self.answerers.pop(job.id, None)
        if found is None:
            shared = {one.name: getattr(self, one.name) for one in fields(Service)} | {"name": job.model_name}
            taught, threads = self.store.folder(job.id).taught, self.queue.threads
            found = self.load_ladder(taught, threads=threads, queue=self.bridge.queue, **shared)
        self.answerers[job.id] = found
        for job_id in [*self.answerers][:-MOST_ANSWERERS]:  # a running answer keeps its service alive
            self.answerers.pop(job_id, None)
        return found

    async def more_metrics(self, only: str | None) -> Sequence[Metric]:
        return await asyncio.to_thread(self._job_metrics, only)

    def _job_metrics(self, only: str | None) -> Sequence[Metric]:
        """Return how many jobs have each status, how long the oldest job has waited for its start, and the steps of running jobs."""
        counts, waits, steps = Counter[str](), Counter[str](), Counter[str]()
        for job in [*self.store.jobs.values()]:
            if only not in (None, job.tenant):
                continue
            tenant, is_queued = f'tenant="{job.tenant}"', job.status == "queued"
            counts[f'{{{tenant},status="{"paused" if is_queued and job.is_paused else job.status}"}}'] += 1
            if is_queued and not job.is_paused and job.started_at is None:
                waits[f"{{{tenant}}}"] = max(waits[f"{{{tenant}}}"], int(time.time()) - job.created_at)
            if job.status == "running" and (done := self.store.folder(job.id).steps()):
                steps[f'{{{tenant},kind="done"}}'] += done[-1]["data"]["step"]
                steps[f'{{{tenant},kind="total"}}'] += done[-1]["data"]["total_steps"]
        owners = {one.tenant for one in [*self.store.files.values()]} | {
            one.tenant for one in [*self.store.jobs.values()]
        }
        sizes = {f'{{tenant="{one}"}}': self.store.bytes_of(one) for one in owners if only in (None, one)}
        return [
            ("tune_bytes", "gauge", "Bytes of files, jobs and models, by tenant.", Counter(sizes)),
            ("tune_jobs", "gauge", "Fine-tuning jobs, by tenant and status.", counts),
            ("tune_wait_seconds", "gauge", "Seconds that the oldest job has waited for its start, by tenant.", waits),
            ("tune_steps", "gauge", "Steps of the running jobs, by tenant and kind.", steps),
        ]

    def model_cards(self, tenant: str) -> list[dict[str, Any]]:
        own_jobs = (job for job in [*self.store.jobs.values()] if job.tenant == tenant and job.has_model)
        tuned = [self._tuned_card(job, job.model_name) for job in own_jobs]
        [own] = super().model_cards(tenant)
        bases = [
            own | {"id": name, "root": self.name}
            for name, run in self.bases.items()
            if run and name not in (ALL, self.name)
        ]
        return [own, *bases, *tuned]

    def model_card(self, name: str, tenant: str) -> dict[str, Any]:
        job = self.tuned_job(name.partition(CHECKPOINT)[0], tenant)
        is_checkpoint = job is not None and CHECKPOINT in name and self._tuned_run(job, name) is not None
        return self._tuned_card(job, name) if job is not None and is_checkpoint else super().model_card(name, tenant)

    def _tuned_card(self, job: Job, name: str) -> dict[str, Any]:
        card = {"id": name, "object": "model", "created": job.finished_at or job.created_at, "owned_by": job.tenant}
        more = {"root": self.name, "max_model_len": self.bridge.info.max_len} if job.base else {"root": LADDER}
        return card | more
