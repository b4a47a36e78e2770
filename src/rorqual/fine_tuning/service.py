"""The state of a server with the fine-tuning API: the store, the queue, and the tuned models beside the base model."""

from __future__ import annotations

import shutil
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rorqual.core.config import Bytes, Config, Count
from rorqual.core.errors import ConfigError
from rorqual.core.lock import Lock, acquire_lock
from rorqual.core.records import NO_DEFAULTS, RunDir
from rorqual.fine_tuning.queue import JobQueue
from rorqual.fine_tuning.store import Job, TuneStore
from rorqual.serve.errors import ApiError
from rorqual.serve.service import ModelService

ALL = "*"
CHECKPOINT = ":ckpt-step-"
"""Between the name of a tuned model and the step of one of its checkpoints."""


class TuningOptions(Config):
    """Options of the fine-tuning API. `names`: the names of base models that clients may give; `*` is every name."""

    folder: str
    names: tuple[str, ...] = ()
    at_once: Count = 1
    file_bytes: Bytes = 512 << 20
    memory: Bytes = 0
    threads: Count = 1


@dataclass(frozen=True, kw_only=True)
class TuneService(ModelService):
    """A server of a base model, and of the adapters that its jobs trained. `lock`: the lock of the store's folder."""

    base: RunDir
    options: TuningOptions
    store: TuneStore
    queue: JobQueue
    lock: Lock

    @classmethod
    def extend(cls, service: ModelService, base: RunDir, options: TuningOptions) -> TuneService:
        """Return `service` with the fine-tuning API. Raises ConfigError if the folder cannot be used."""
        folder = Path(options.folder).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write here: {error.strerror}", where=f"tune={folder}", remedy="Give another folder."
            ) from None
        lock = acquire_lock(folder, "Give each server its own folder.")
        store = TuneStore(folder)
        queue = JobQueue(store, at_once=options.at_once, threads=options.threads, memory=options.memory)
        known = {one.name: getattr(service, one.name) for one in fields(service)}
        return cls(**known, base=base, options=options, store=store, queue=queue, lock=lock)

    def tasks(self) -> Sequence[Coroutine[Any, Any, None]]:
        return [*super().tasks(), self.queue.run()]

    def close(self) -> None:
        self.lock.close()
        super().close()

    async def forget_model(self, job: Job) -> None:
        """Delete the models of a job, also from the engine's memory."""
        for name in [known for known in self.bridge.adapters if known.partition(CHECKPOINT)[0] == job.model_name]:
            with suppress(ApiError):  # an unfinished request uses it, or the engine is restarting
                await self.bridge.unload_adapter(name)
        shutil.rmtree(self.store.folder(job.id).models, ignore_errors=True)

    def accepts_base(self, name: str) -> bool:
        """Return whether clients may name the base model `name`."""
        is_tuned = name.startswith("ft:") or CHECKPOINT in name  # training goes on from the base alone
        return name in (self.name, *self.options.names) or (ALL in self.options.names and not is_tuned)

    def tuned_job(self, name: str, tenant: str) -> Job | None:
        """Return the tenant's job whose model is called `name`, unless the model was deleted."""
        own = (job for job in [*self.store.jobs.values()] if job.tenant == tenant and not job.is_deleted)
        return next((job for job in own if job.model_name == name), None)

    def for_model(self, name: str, tenant: str) -> ModelService:
        if name == self.name:
            return self
        head, _, step = name.partition(CHECKPOINT)
        if (job := self.tuned_job(head, tenant)) is not None and (step or job.has_model):
            folder = self.store.folder(job.id)
            steps = [line["step_number"] for line in folder.checkpoints()]
            for known in [one for one in steps if str(one) == step] if step else steps[-1:]:
                adapter = str(folder.model(known).checkpoint())
                return replace(self, name=name, adapter=adapter, task=NO_DEFAULTS)
        return super().for_model(name, tenant)

    def model_cards(self, tenant: str) -> list[dict[str, Any]]:
        tuned = [
            {"id": job.model_name, "object": "model", "created": job.finished_at, "owned_by": tenant}
            | {"root": self.name, "max_model_len": self.bridge.info.max_len}
            for job in [*self.store.jobs.values()]
            if job.tenant == tenant and job.has_model
        ]
        return [*super().model_cards(tenant), *tuned]
