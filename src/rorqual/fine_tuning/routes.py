"""The routes `/v1/files` and `/v1/fine_tuning/jobs` in OpenAI's form, and the deletion of tuned models."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import python_multipart  # noqa: F401  # `Request.form` needs it
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message

from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.core.rows import read_rows
from rorqual.fine_tuning.examples import GRADER, example_lengths, read_examples
from rorqual.fine_tuning.queue import PAUSED_MESSAGE
from rorqual.fine_tuning.schemas import WITHOUT_EFFECT, Hyperparameters, JobRequest, UploadFields
from rorqual.fine_tuning.service import TuneService
from rorqual.fine_tuning.store import CHECKPOINT, LADDER, Job, StoredFile, new_id
from rorqual.serve.bodies import BODY_SECONDS, read_body
from rorqual.serve.errors import ApiError, bad_request
from rorqual.serve.schemas import parse_body
from rorqual.serve.validation_errors import describe_value, validated
from rorqual.teach.examples import FEWEST_EXAMPLES, GIVE_MORE

router = APIRouter()
Row = dict[str, Any]
MOST_FILES, MOST_JOBS, MOST_KEPT, LONGEST_NAME = 1000, 100, 1000, 256
"""Maximum number of files, of unfinished jobs and of all jobs of a tenant, and maximum length of a file's name."""
LARGEST_FILE = 512 << 20
"""Maximum bytes of a file, as in OpenAI's API."""
PAGE, LARGEST_PAGE = 20, 10_000
CHECKED_BYTES = 16 << 20
FORMS = {
    "supervised": ("messages",),
    "dpo": ("input", "preferred_output", "non_preferred_output"),
    "reinforcement": ("messages", "and those that the grader reads"),
}
"""The keys of a row, by method."""
RECENT = 20
"""The number of the last steps that tell how fast a job is."""
FORM_BYTES = 65_536
"""Bytes of an upload's form beside the file."""
SLOWEST = 65_536
"""An upload that takes more than `BODY_SECONDS` must bring `SLOWEST` bytes a second."""


def _service(request: Request) -> TuneService:
    service: TuneService = request.app.state.service
    return service


def _not_found(kind: str, name: str, param: str | None = None) -> ApiError:
    return ApiError(404, f"No such {kind}: {name[:LONGEST_NAME]}", param=param, code="not_found")


def _job(request: Request, job_id: str) -> Job:
    """Return a job of the tenant. Raises ApiError if the tenant has no such job."""
    job = _service(request).store.job(job_id, request.state.tenant)
    if job is None:
        raise _not_found("fine-tuning job", job_id)
    return job


def _file(request: Request, file_id: str, param: str | None = None) -> StoredFile:
    """Return a file of the tenant. Raises ApiError if the tenant has no such file."""
    found = _service(request).store.file(file_id, request.state.tenant)
    if found is None:
        raise _not_found("File object", file_id, param)
    return found


def _page(request: Request, rows: Sequence[Row], default: int = PAGE) -> JSONResponse:
    """Return a page of `rows` in OpenAI's form. `after` is the id of the last row of the page before."""
    limit = request.query_params.get("limit", str(default))
    if not limit.isascii() or not limit.isdigit() or len(limit) > 6 or not 1 <= int(limit) <= LARGEST_PAGE:
        raise bad_request(f"`limit` is {describe_value(limit)}. Give 1 to {LARGEST_PAGE}.", "limit")
    start = 0
    if after := request.query_params.get("after"):
        places = [place for place, row in enumerate(rows) if row["id"] == after]
        if not places:
            raise bad_request(f"`after` is {describe_value(after)}, which is not in the list.", "after")
        start = places[0] + 1
    page, rest = rows[start : start + int(limit)], rows[start + int(limit) :]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": page, "has_more": bool(rest), **ends})


# ---- files


@router.post("/v1/files")
async def upload_file(request: Request) -> JSONResponse:
    """Store an uploaded file of the purpose `fine-tune`. Each line must be a JSON object."""
    service, tenant = _service(request), request.state.tenant
    if (files := sum(file.tenant == tenant for file in [*service.store.files.values()])) >= MOST_FILES:
        raise ApiError(413, f"This tenant has {files:,} files. Delete files first.", code="too_many_files")
    room = await service.run_in_thread(tenant, partial(_room, service, tenant))
    async with service.bodies.reserve_body_slot(tenant):
        limited = Request(request.scope, limited_receive(request.receive, min(room, LARGEST_FILE)))
        async with limited.form(max_files=1, max_fields=4, max_part_size=FORM_BYTES) as form:
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise bad_request("`file` is missing. Send a multipart form with the fields file and purpose.", "file")
            expiry = _fields(form).expires_after
            work = partial(_store_upload, service, upload, tenant, None if expiry is None else expiry.seconds)
            return JSONResponse((await service.run_in_thread(tenant, work)).shown())


def _fields(form: FormData) -> UploadFields:
    """Return the fields of an upload beside the file. Raises ApiError if one is wrong."""
    fields, nested = dict[str, Any](), dict[str, Any]()
    for name, value in form.items():
        if name.startswith("expires_after["):
            nested[name[14:-1]] = value
        elif name != "file":
            fields[name] = value
    return validated(UploadFields, fields | ({"expires_after": nested} if nested else {}))


def _room(service: TuneService, tenant: str, size: int = 1) -> int:
    """Return how many bytes the tenant may still store. Raises ApiError if it is less than `size`."""
    if (used := service.store.bytes_of(tenant)) + size > service.tenant_bytes:
        problem = (
            f"The files, jobs and models of this tenant have {used:,} bytes, the limit is {service.tenant_bytes:,}."
        )
        remedy = "Delete files or models first. The operator can raise tune_bytes=."
        raise ApiError(413, f"{problem} {remedy}", code="storage_full")
    return service.tenant_bytes - used


def limited_receive(receive: Callable[[], Any], limit: int) -> Callable[[], Any]:
    """Return what receives an upload's form as `receive` does, and raises ApiError if the file has more than `limit` bytes, or if the
    form arrives too slowly."""
    size, began = 0, asyncio.get_running_loop().time()

    async def receive_some() -> Message:
        nonlocal size
        try:
            async with asyncio.timeout_at(began + BODY_SECONDS + size / SLOWEST):
                message: Message = await receive()
        except TimeoutError:
            problem = (
                f"The file arrives too slowly. After {BODY_SECONDS:.0f} seconds, {SLOWEST:,} bytes a second are needed."
            )
            raise ApiError(408, problem) from None
        size += len(message.get("body", b""))
        if size > limit + FORM_BYTES:
            problem = f"The file is too large: it may have {limit:,} bytes. Delete files or models, or split the file."
            raise ApiError(413, f"{problem} The operator can raise tune_bytes=.", param="file", code="body_too_large")
        return message

    return receive_some


def _store_upload(service: TuneService, upload: UploadFile, tenant: str, seconds: int | None) -> StoredFile:
    """Check and store an uploaded file. Raises ApiError if a line is not a JSON object, or if the disk is full."""
    name = Path(upload.filename or "file.jsonl").name[:LONGEST_NAME]
    temporary = service.store.path / f".upload-{secrets.token_hex(8)}.jsonl"
    try:
        _copy_lines(upload.file, temporary, service.max_body)
        _room(service, tenant, temporary.stat().st_size)  # again, because others may have been stored meanwhile
        if not sum(1 for _ in read_rows(temporary)):
            raise DataError("the file has no rows", remedy="Give one JSON object a line.")
        return service.store.add_file(temporary, tenant, name, seconds=seconds)
    except DataError as error:
        problem = f"`file` is not valid: {str(error).replace(str(temporary), name)}"
        raise bad_request(problem, "file", "invalid_file") from None
    except (OSError, RorqualError) as error:
        problem = f"The file cannot be stored: {error}. Try again later."
        raise ApiError(507, problem.replace(str(temporary), name), param="file", code="no_space") from None
    finally:
        temporary.unlink(missing_ok=True)


def _copy_lines(source: BinaryIO, target: Path, longest: int) -> None:
    """Copy a file. Raises DataError if a line has more than `longest` bytes, because a line is parsed as a whole."""
    length = 0
    with open(target, "wb") as out:
        while block := source.read(1 << 20):
            first, *rest = block.split(b"\n")
            length += len(first)
            if max(length, *map(len, rest), 0) > longest:
                raise DataError(f"a line has more than {longest:,} bytes", where=str(target), remedy="Shorten it.")
            length = len(rest[-1]) if rest else length
            out.write(block)


@router.get("/v1/files")
async def list_files(request: Request) -> JSONResponse:
    """Return the tenant's files, the newest first. `purpose` and `order` are OpenAI's."""
    purpose, tenant = request.query_params.get("purpose"), request.state.tenant
    own = [file for file in [*_service(request).store.files.values()] if file.tenant == tenant]
    rows = [file.shown() for file in own if purpose in (None, file.purpose)]
    return _page(request, _newest_first(rows, request.query_params.get("order")), LARGEST_PAGE)


def _newest_first(rows: Iterable[Row], order: str | None = None) -> list[Row]:
    return sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=order != "asc")


@router.get("/v1/files/{file_id}")
async def retrieve_file(request: Request, file_id: str) -> JSONResponse:
    """Return the description of a file."""
    return JSONResponse(_file(request, file_id).shown())


@router.get("/v1/files/{file_id}/content")
async def file_content(request: Request, file_id: str) -> Response:
    """Return the content of a file."""
    content = _service(request).store.content(_file(request, file_id).id)
    return FileResponse(content, media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}")
async def delete_file(request: Request, file_id: str) -> JSONResponse:
    """Delete a file. Jobs that were created with the file go on."""
    _service(request).store.delete_file(_file(request, file_id).id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


# ---- jobs


@router.post("/v1/fine_tuning/jobs")
async def create_job(request: Request) -> JSONResponse:
    """Queue a fine-tuning job."""
    service, tenant = _service(request), request.state.tenant
    async with read_body(request, service.max_body, service.bodies, tenant) as parts:
        asked = validated(JobRequest, parse_body(b"".join(parts)))
    base, start, depth = service.base_of(asked.model, tenant)
    for param in ("training_file", "validation_file"):
        if (file_id := getattr(asked, param)) is not None and _file(request, file_id, param).purpose != "fine-tune":
            raise bad_request(f"`{param}` is a result file. Give a file of the purpose 'fine-tune'.", param)
    method = asked.chosen_method()
    if not base and method.type != "supervised":
        problem = f"`method.type` is '{method.type}', but the base '{LADDER}' offers 'supervised' alone."
        raise bad_request(problem, "method.type", "unsupported_value")
    if not base and find_spec("skops") is None:
        problem = f"`model` is the base '{LADDER}', whose packages the server lacks. The operator installs them by "
        raise ApiError(501, problem + 'pip install "rorqual[teach]".', param="model", code="unsupported_value")
    if not base and asked.validation_file == asked.training_file:
        problem = (
            "`validation_file` is the training file, whose answers a ladder knows. Give other rows, or leave it out."
        )
        raise bad_request(problem, "validation_file")
    await service.run_in_thread(tenant, partial(_check_examples, request, asked, base))
    await _make_place_for_job(service, tenant)
    fields = asked.model_dump(include={"model", "training_file", "validation_file", "metadata"})
    job = Job(
        id=new_id("ftjob"),
        tenant=tenant,
        created_at=int(time.time()),
        base=base,
        method=method,
        seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        suffix=asked.suffix or "",
        depth=depth,
        **fields,
    )
    try:
        service.store.add_job(job, start)
        if not base and asked.model != LADDER:
            service.store.folder(job.id).add_event("info", f"The base '{asked.model}' is the ladder here")
        if ignored := method.hyperparameters.given({*Hyperparameters.model_fields} if not base else WITHOUT_EFFECT):
            message = f"These hyperparameters have no effect here: {', '.join(ignored)}"
            service.store.folder(job.id).add_event("warn", message)
    except (OSError, RorqualError) as error:
        problem = service.store.with_file_names(job, f"The job cannot be stored: {error}. Try again later.")
        raise ApiError(507, problem, code="no_space") from None
    if service.queue.is_busy:
        service.queue.note(job, "The job waits, because other jobs run")
    service.queue.wake()
    return JSONResponse((await _shown(request, job))[0])


async def _make_place_for_job(service: TuneService, tenant: str) -> None:
    """Make place for another job of the tenant. Raises ApiError if the tenant stores too much."""
    await service.run_in_thread(tenant, partial(_room, service, tenant, 0))
    own = [job for job in service.store.jobs.values() if job.tenant == tenant]
    if (unfinished := sum(not job.is_finished for job in own)) >= MOST_JOBS:
        raise ApiError(429, f"{unfinished} jobs of this tenant are not finished. Try again later.", code="queue_full")
    if len(own) < MOST_KEPT:
        return
    past = [job for job in own if job.is_finished and not job.has_model]
    if not past:
        raise ApiError(413, f"This tenant has {len(own):,} jobs and models. Delete models first.", code="storage_full")
    oldest = min(past, key=lambda job: (job.created_at, job.id))
    service.store.delete_job(oldest.id)
    await service.forget_model(oldest.model_copy(update={"is_deleted": True}), "")


def _check_examples(request: Request, asked: JobRequest, base: str) -> None:
    """Raise ApiError for a grader that is not offered, and for a file whose rows are not those of the job's method, or which the base
    model cannot learn.

    The job itself checks files of more than `CHECKED_BYTES`, because checking takes memory.
    """
    service = _service(request)
    for param in ("training_file", "validation_file"):
        if (file_id := getattr(asked, param)) is None:
            continue
        file, content = _file(request, file_id, param), service.store.content(file_id)
        try:
            rows = (
                example_lengths(asked.chosen_method(), content, service.chat, service.bridge.info.max_len)
                if base
                else read_examples(content)
            )
            is_small = file.bytes <= CHECKED_BYTES
            checked = sum(1 for _ in islice(rows, None if is_small else 1))
            if not base and param == "training_file" and is_small and checked < FEWEST_EXAMPLES:
                raise DataError(f"only {checked:,} examples", where=str(content), remedy=GIVE_MORE)
        except ConfigError as error:
            problem = f"`{GRADER}` is not valid: {error.what}. {error.remedy}".strip()
            raise bad_request(f"{problem.rstrip('.')}.", GRADER) from None
        except DataError as error:
            kind, told = (
                asked.chosen_method().type,
                " ".join(_sentences(error).replace(str(content), file.filename).split()),
            )
            first, *others = FORMS[kind]
            if first not in next(read_rows(content)).values:
                told += f" A row for '{kind}' has the keys {', '.join([first, *others])}."
            raise bad_request(
                f"`{param}` is not valid for the method '{kind}': {told}", param, f"invalid_{param}"
            ) from None


def _sentences(error: RorqualError) -> str:
    """Return the error's text with a stop between the problem and the remedy."""
    return str(error).replace("\n", ".\n", 1)


async def _shown(request: Request, *jobs: Job) -> list[Row]:
    """Return jobs as OpenAI's API shows them."""
    service = _service(request)

    def rows() -> list[Row]:
        shown = []
        for job in jobs:
            folder = service.store.folder(job.id)
            finish = estimated_finish(folder.steps()) if job.status == "running" else None
            shown.append(job.shown(finish, folder.used_hyperparameters()))
        return shown

    return await service.run_in_thread(request.state.tenant, rows)


def estimated_finish(steps: Sequence[Row]) -> int | None:
    """Return when the last step ends, as a Unix time, or None if that is not known. Each step takes as long as the median of the last
    `RECENT`, so that pauses do not count."""
    if len(steps) < 2:
        return None
    pace = median(after["created_at"] - before["created_at"] for before, after in pairwise(steps[-RECENT:]))
    left = steps[-1]["data"]["total_steps"] - steps[-1]["data"]["step"]
    return round(steps[-1]["created_at"] + pace * left)


@router.get("/v1/fine_tuning/jobs")
async def list_jobs(request: Request) -> JSONResponse:
    """Return the tenant's jobs, the newest first. `metadata[KEY]=VALUE` selects jobs, and `metadata=null` those without metadata."""
    wanted = {key[9:-1]: value for key, value in request.query_params.items() if key.startswith("metadata[")}
    own = [job for job in _service(request).store.jobs.values() if job.tenant == request.state.tenant]
    if request.query_params.get("metadata") == "null":
        own = [job for job in own if job.metadata is None]
    chosen = [job for job in own if wanted.items() <= (job.metadata or {}).items()]
    return _page(request, _newest_first(await _shown(request, *chosen)))


@router.get("/v1/fine_tuning/jobs/{job_id}")
async def retrieve_job(request: Request, job_id: str) -> JSONResponse:
    """Return a job."""
    return JSONResponse((await _shown(request, _job(request, job_id)))[0])


@router.post("/v1/fine_tuning/jobs/{job_id}/{action}")
async def change_job(request: Request, job_id: str, action: str) -> JSONResponse:
    """Cancel, pause or resume a job. A paused job is shown as queued, and continues with the same weights."""
    queue, job = _service(request).queue, _job(request, job_id)
    if action not in ("cancel", "pause", "resume"):
        raise _not_found("action", action)
    if job.is_finished:
        raise bad_request(f"Job '{job.id}' has already ended with status '{job.status}'.", code="job_finished")
    if action == "cancel":
        job = queue.update(job, status="cancelled")  # the end of its process then changes nothing
        await queue.stop_job(job, at_once=True)
        queue.finish(job, "cancelled")
    else:
        if job.is_paused != (action == "pause"):
            job = queue.update(job, is_paused=action == "pause")
            stops = "The job pauses as soon as its step has ended" if job.status == "running" else PAUSED_MESSAGE
            queue.note(job, stops if job.is_paused else "Fine-tuning job resumed")
        if job.is_paused:
            await queue.stop_job(job, at_once=False)
            await asyncio.sleep(0)  # the end of the process is recorded first
    queue.wake()
    return JSONResponse((await _shown(request, _job(request, job_id)))[0])


@router.get("/v1/fine_tuning/jobs/{job_id}/events")
async def list_events(request: Request, job_id: str) -> JSONResponse:
    """Return the events of a job, the newest first."""
    folder = _service(request).store.folder(_job(request, job_id).id)
    events = await _service(request).run_in_thread(request.state.tenant, folder.events)  # there may be thousands
    return _page(request, events[::-1])


@router.get("/v1/fine_tuning/jobs/{job_id}/checkpoints")
async def list_checkpoints(request: Request, job_id: str) -> JSONResponse:
    """Return the checkpoints of a job, the newest first."""
    job = _job(request, job_id)
    rows = [
        {
            **line,
            "object": "fine_tuning.job.checkpoint",
            "fine_tuning_job_id": job.id,
            "fine_tuned_model_checkpoint": f"{job.model_name}{CHECKPOINT}{line['step_number']}",
        }
        for line in _service(request).store.folder(job.id).checkpoints()
    ]
    return _page(request, rows[::-1], 10)


@router.delete("/v1/models/{name:path}")
async def delete_model(request: Request, name: str) -> JSONResponse:
    """Delete a checkpoint by its name, or a tuned model with all its checkpoints."""
    service = _service(request)
    head, is_checkpoint, step = name.partition(CHECKPOINT)
    job = service.tuned_job(head, request.state.tenant)
    steps = [] if job is None else service.store.folder(job.id).kept_steps()
    if name in service.bases:
        raise bad_request("`model` is the base model, which cannot be deleted here.", "model")
    if job is not None and not job.is_finished:
        raise bad_request(f"`model` belongs to job '{job.id}', which has not ended. Cancel the job first.", "model")
    if job is None or (is_checkpoint and step not in steps):
        raise service.unknown_model_error(name)
    if is_checkpoint and job.has_model and step == steps[-1]:
        raise bad_request(f"`model` is the last checkpoint of '{head}'. Delete the model by that name.", "model")
    await service.forget_model(job if is_checkpoint else service.queue.update(job, is_deleted=True), step)
    return JSONResponse({"id": name, "object": "model", "deleted": True})
