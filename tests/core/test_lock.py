"""One process writes a folder: the second is refused by the first one's name, a kill frees it, and readers are let in."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from rorqual.core.errors import RorqualError
from rorqual.core.journal import Journal
from rorqual.core.lock import RUN_LOCK, acquire_lock, acquire_run_lock


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["rorqual.core.journal"])
    return forks


def hold(take: Callable[[Path], object], path: Path, taken: Path) -> None:
    held = take(path)
    taken.touch()
    while held:
        time.sleep(60)


def take_file(path: Path) -> object:
    return acquire_lock(path, "Wait for it.")


@contextmanager
def held(context: ForkServerContext, take: Callable[[Path], object], path: Path, taken: Path) -> Iterator[int]:
    """Another process that has the lock; it is killed at the end. Gives its number."""
    process = context.Process(target=hold, args=(take, path, taken))
    process.start()
    try:
        while not taken.exists():
            assert process.is_alive()
            time.sleep(0.002)
        yield process.pid or 0
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("take", [acquire_run_lock, take_file, Journal], ids=["run", "file", "journal"])
def test_the_other_process_is_named_and_its_kill_frees_the_lock(
    take: Callable[[Path], object], tmp_path: Path, context: ForkServerContext
) -> None:
    path = tmp_path / "new" / "it"
    with (
        held(context, take, path, tmp_path / "taken") as pid,
        pytest.raises(
            RorqualError,
            match=rf"new/it: another process is writing to this path: process {pid}, since 20\d\d-(?s:.)*Wait",
        ),
    ):
        take(path)
    take(path).close()  # type: ignore[attr-defined]


def test_a_folder_that_is_being_made_beside_its_place_is_no_place_to_train(tmp_path: Path) -> None:
    with (
        acquire_lock(tmp_path / "run", ""),
        pytest.raises(RorqualError, match="another process is writing to this path"),
    ):
        acquire_run_lock(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_another_machine_is_named_and_a_holder_that_has_not_said_its_name_is_not(tmp_path: Path) -> None:
    with acquire_run_lock(tmp_path / "run"):
        file = tmp_path / "run" / RUN_LOCK
        told = json.loads(file.read_bytes())
        assert (told["process"], told["host"]) == (os.getpid(), platform.node())
        for raw, said in (
            (json.dumps(told | {"host": "far"}), f"{os.getpid()} on far, since"),
            ("", "writing to this path\n"),
            ("[]", "writing to this path\n"),
        ):
            file.write_text(raw, "utf-8")
            with pytest.raises(RorqualError, match=said):
                acquire_run_lock(tmp_path / "run")


def test_what_the_lock_made_goes_with_it_and_what_others_made_stays(tmp_path: Path) -> None:
    with acquire_run_lock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / RUN_LOCK).exists()
    assert not (tmp_path / "a").exists()
    with acquire_run_lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").touch()
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["mine"]


def test_one_at_a_time_while_many_come_and_go(tmp_path: Path, context: ForkServerContext) -> None:
    """The lock file is removed by who had it: nobody may hold a file that is gone beside one who holds the new one."""
    inside, seen = tmp_path / "inside", tmp_path / "seen"
    processes = [context.Process(target=come_and_go, args=(tmp_path / "run", inside, seen)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0] and seen.stat().st_size == 3 * 60


def come_and_go(run: Path, inside: Path, seen: Path) -> None:
    done = 0
    while done < 60:
        try:
            with acquire_run_lock(run):
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # two at once: it exists
                with open(seen, "ab") as file:
                    file.write(b".")
                inside.unlink()
            done += 1
        except RorqualError:
            pass
