"""Files of the fine-tuning API: stored, listed, read, deleted, and refused by name."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import FileDeleted, FileObject
from tuned_server import TuneServer, sums, tuning

from rorqual.fine_tuning.routes import limited_receive
from rorqual.serve.bodies import BODY_SECONDS
from rorqual.serve.errors import ApiError


def test_a_file_comes_back_as_it_was_sent(tuner: TuneServer, tmp_path: Path) -> None:
    data, files = sums(tmp_path / "my sums.jsonl"), tuner.client.files
    with open(data, "rb") as content:
        stored = files.create(file=content, purpose="fine-tune")
    FileObject.model_validate(stored.model_dump(), strict=True)
    assert (stored.filename, stored.bytes, stored.status) == ("my sums.jsonl", data.stat().st_size, "processed")
    assert files.retrieve(stored.id) == stored and stored in files.list(purpose="fine-tune").data
    assert files.content(stored.id).content == data.read_bytes()
    assert stored not in files.list(purpose="fine-tune-results").data
    deleted = files.delete(stored.id)
    FileDeleted.model_validate(deleted.model_dump(), strict=True)
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        files.retrieve(stored.id)


def test_a_list_has_pages_in_both_orders(tuner: TuneServer, tmp_path: Path) -> None:
    ids = {tuner.upload(sums(tmp_path / f"{number}.jsonl", rows=1), tuner.other) for number in range(3)}
    newest = [file.id for file in tuner.other.files.list(limit=2)]  # the package asks for all pages
    assert len(newest) == len({*newest}) and ids <= {*newest}
    first = tuner.other.files.list(limit=2, order="asc")
    assert first.has_more and [file.id for file in first.data] == newest[::-1][:2]
    with pytest.raises(openai.BadRequestError, match="`after` is"):
        tuner.other.files.list(after="file-unknown")
    with pytest.raises(openai.BadRequestError, match="`limit` is"):
        tuner.other.files.list(limit=0)


def test_no_tenant_sees_anothers_file(tuner: TuneServer, tmp_path: Path) -> None:
    own = tuner.upload(sums(tmp_path / "own.jsonl"))
    files = tuner.other.files
    for ask in (files.retrieve, files.content, files.delete):
        with pytest.raises(openai.NotFoundError) as known:
            ask(own)
        with pytest.raises(openai.NotFoundError) as unknown:
            ask("file-" + "x" * 24)
        assert str(known.value).replace(own, "ID") == str(unknown.value).replace("file-" + "x" * 24, "ID")
    assert own not in {file.id for file in files.list()}
    with pytest.raises(openai.NotFoundError, match="No such File object") as refused:
        tuner.other.fine_tuning.jobs.create(model="gpt-4o-mini-2024-07-18", training_file=own)
    assert refused.value.param == "training_file"
    assert tuner.client.files.retrieve(own).id == own


BAD: list[tuple[bytes, dict[str, Any], str]] = [
    (b"prompt,answer\na,b\n", {}, r"mail\.jsonl:1: not JSON"),
    (b'{"messages": []}\n[1, 2]\n', {}, r"mail\.jsonl:2"),
    (b"", {}, "the file is empty"),
    (b"\xff\xfe\x00", {}, r"mail\.jsonl"),
    (b'{"messages": []}\n', {"purpose": "batch"}, "`purpose` is"),
]


@pytest.mark.parametrize(("content", "more", "problem"), BAD, ids=["csv", "no object", "empty", "bytes", "purpose"])
def test_what_is_no_file_of_rows_is_refused(
    tuner: TuneServer, content: bytes, more: dict[str, Any], problem: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=problem):
        tuner.client.files.create(file=("mail.jsonl", content), **{"purpose": "fine-tune", **more})
    good = tuner.client.files.create(file=("mail.jsonl", b'{"messages": []}\n'), purpose="fine-tune")
    assert good.filename == "mail.jsonl" and not [*tuner.folder.glob(".upload*")]


def test_a_form_without_a_file_is_refused(tuner: TuneServer) -> None:
    with tuner.http() as client:
        refused = client.post("/v1/files", data={"purpose": "fine-tune"})
        broken = client.post("/v1/files", content=b"--", headers={"content-type": "multipart/form-data"})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "file"
    assert broken.status_code == 400 and "Missing boundary" in broken.json()["error"]["message"]


WRONG_EXPIRY: list[tuple[dict[str, Any], str, str]] = [
    ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "greater than or equal to 3600", "expires_after.seconds"),
    ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"}, "less than or equal to 2592000", "expires_after.seconds"),
    ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "soon"}, "valid integer", "expires_after.seconds"),
    ({"expires_after[anchor]": "created_at"}, "is missing", "expires_after.seconds"),
    ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "Input should be 'created_at'", "expires_after.anchor"),
    ({"expires": "3600"}, "`expires` is not a field", "expires"),
]  # fmt: skip


def test_a_file_may_expire(tuner: TuneServer) -> None:
    kept = tuner.client.files.create(file=("a.jsonl", b"{}\n"), purpose="fine-tune")
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    stored = tuner.client.files.create(file=("a.jsonl", b"{}\n"), purpose="fine-tune", expires_after=expiry)
    FileObject.model_validate(stored.model_dump(), strict=True)
    assert kept.expires_at is None and stored.expires_at == stored.created_at + 3600


@pytest.mark.parametrize(("fields", "problem", "param"), WRONG_EXPIRY, ids=[problem for _, problem, _ in WRONG_EXPIRY])
def test_a_wrong_field_of_an_upload_is_refused_by_name(
    tuner: TuneServer, fields: dict[str, str], problem: str, param: str
) -> None:
    with tuner.http() as client:
        refused = client.post(
            "/v1/files", data={"purpose": "fine-tune", **fields}, files={"file": ("a.jsonl", b"{}\n")}
        )
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert problem in error["message"] and error["param"] == param


class ByHand(asyncio.SelectorEventLoop):
    """Its time stands until it is moved."""

    now = 0.0

    def time(self) -> float:
        return self.now


@pytest.mark.parametrize(("size", "status"), [(1 << 20, 408), (8 << 20, None)])
def test_an_upload_needs_a_least_speed(size: int, status: int | None) -> None:
    """Parts that each come within a minute do not keep an upload open for ever."""

    async def upload() -> None:
        parts = asyncio.Queue[dict[str, Any]]()
        receive = limited_receive(parts.get, 1 << 30)
        for _ in range(10):
            part = loop.create_task(receive())
            await asyncio.sleep(0)
            loop.now += BODY_SECONDS - 1
            for _ in range(5):
                await asyncio.sleep(0)
            parts.put_nowait({"type": "http.request", "body": b"x" * size, "more_body": True})
            await part

    loop = ByHand()
    try:
        if status is None:
            loop.run_until_complete(upload())
        else:
            with pytest.raises(ApiError, match="65,536 bytes a second are needed") as refused:
                loop.run_until_complete(upload())
            assert refused.value.status == status
    finally:
        loop.close()


def test_a_tenants_files_have_a_limit(base: Path, tmp_path: Path) -> None:
    """In bytes, also for uploads at the same time, and for each line. Every base name is taken, but not that of a tuned model."""
    with tuning(base, tmp_path, "tune_bytes=3000", "max_body=1024", "tune_names=*") as small:
        row, files = b'{"messages": []}\n', small.client.files

        def upload(rows: int) -> int:
            try:
                return files.create(file=("a.jsonl", row * rows), purpose="fine-tune").bytes
            except openai.APIStatusError as error:
                return error.status_code

        with ThreadPoolExecutor(3) as pool:
            assert sorted(pool.map(upload, [100] * 3)) == [413, 413, 1700]
        with pytest.raises(openai.APIStatusError, match="may have 3,000 bytes"):
            small.other.files.create(file=("b.jsonl", row * 8000), purpose="fine-tune")
        with pytest.raises(openai.BadRequestError, match=r"b\.jsonl: a line has more than 1,024 bytes"):
            small.other.files.create(file=("b.jsonl", row + b'{"a": "' + b"a" * 1020 + b'"}\n'), purpose="fine-tune")
        assert small.other.files.create(file=("b.jsonl", row * 100), purpose="fine-tune").bytes == 1700
        [kept] = files.list().data
        jobs = small.client.fine_tuning.jobs
        with pytest.raises(openai.NotFoundError, match="not offered for fine-tuning"):
            jobs.create(model="ft:gpt-9:a::12345678", training_file=kept.id)
        files.delete(kept.id)
        assert upload(100) == 1700
        files.delete(files.list().data[0].id)
        kept = files.create(file=sums(tmp_path / "data.jsonl"), purpose="fine-tune")
        jobs.cancel(jobs.create(model="gpt-9", training_file=kept.id).id)
