"""Blocks on disk: whatever happens to a file, it is the exact payload or a miss."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_kills import kill_writers

from rorqual.core.errors import ConfigError, RorqualError
from rorqual.engine.kv_cache.disk import SUFFIX, DiskStore

MIB = 1 << 20


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def payload(number: int, size: int = 5_000) -> bytes:
    return random.Random(number).randbytes(size)


def open_store(folder: Path, budget: int = MIB, fingerprint: bytes = b"weights", **options: int) -> DiskStore:
    return DiskStore(folder, budget, fingerprint, **options)


def file_of(folder: Path, number: int) -> Path:
    return folder / (key(number).hex() + SUFFIX)


def on_disk(folder: Path) -> int:
    """In pages of 4 KiB, as most file systems give them."""
    return sum(-(-file.lstat().st_size // 4096) * 4096 for file in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def store(folder: Path) -> Iterator[DiskStore]:
    with open_store(folder) as opened:
        for number in range(3):
            opened.put(key(number), payload(number))
        opened.flush()
        yield opened


def test_what_is_put_is_a_copy(folder: Path) -> None:
    with open_store(folder) as store:
        memory = bytearray(payload(1))
        store.put(key(1), memoryview(memory))
        memory[:] = bytes(len(memory))
        assert store.get(key(1)) == payload(1)
        store.flush()
        assert store.get(key(1)) == payload(1)


def test_a_restart_keeps_all_and_closing_writes_what_is_queued(folder: Path) -> None:
    with open_store(folder) as store:
        for number in range(20):
            store.put(key(number), payload(number))
    assert store.get(key(1)) is None and not store.has(key(1)) and not store.put(key(1), b"")
    store.close()
    with open_store(folder) as again:
        assert [again.get(key(number)) for number in range(20)] == [payload(number) for number in range(20)]


def test_only_the_owner_can_enter_the_folder(store: DiskStore, folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    store.close()
    folder.chmod(0o755)
    open_store(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def misses(store: DiskStore, number: int = 0) -> None:
    """The file is a miss, is gone, and its twin still hits; the key can be kept anew."""
    damaged = store.stats()["damaged"]
    assert store.get(key(number)) is None and not store.has(key(number))
    assert store.stats()["damaged"] == damaged + 1
    assert store.get(key(2)) == payload(2), "the valid twin"


def test_a_bit_flipped_anywhere_is_a_miss(folder: Path) -> None:
    with open_store(folder, 4 * MIB) as store:
        for number in range(2, 400):
            store.put(key(number), payload(number, 300 if number > 2 else 5_000))
        store.flush()
        size = file_of(folder, 3).stat().st_size
        header = size - 300
        assert header > 80
        draw = random.Random(0)
        places = [*range(header), *(draw.randrange(header, size) for _ in range(250)), size - 1]
        for number, place in enumerate(places, start=3):
            file = file_of(folder, number)
            content = bytearray(file.read_bytes())
            content[place] ^= 1 << draw.randrange(8)
            file.write_bytes(content)
            misses(store, number)
            assert not file.exists()


def test_a_file_cut_or_grown_to_any_length_is_a_miss(store: DiskStore, folder: Path) -> None:
    file = file_of(folder, 0)
    whole = file.read_bytes()
    cuts = [whole[:cut] for cut in [*range(130), 200, 4095, 4096, 5_000, -1, -2, -84, -100]]
    for damaged in [*cuts, whole + b"\0", whole + bytes(5_000), whole * 2]:
        file.write_bytes(damaged)
        misses(store)
        store.put(key(0), payload(0))
        store.flush()
    assert store.get(key(0)) == payload(0)


HARMS: dict[str, Callable[[Path, Path], object]] = {
    "empty": lambda file, folder: file.touch(),
    "a folder": lambda file, folder: file.mkdir(),
    "a folder with something in it": lambda file, folder: (file / "more").mkdir(parents=True),
    "a link to the twin": lambda file, folder: file.symlink_to(file_of(folder, 2).name),
    "a link to nothing": lambda file, folder: file.symlink_to("nothing"),
    "a link to itself": lambda file, folder: file.symlink_to(file.name),
    "a link to a device": lambda file, folder: file.symlink_to("/dev/zero"),
    "a pipe that nobody writes to": lambda file, folder: os.mkfifo(file),
    "another key's file": lambda file, folder: file.write_bytes(file_of(folder, 1).read_bytes()),
    "larger than all memory": lambda file, folder: (file.touch(), os.truncate(file, 1 << 40)),
}


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("what", HARMS)
def test_whatever_stands_in_a_files_place_is_a_miss_and_nothing_is_followed(
    what: str, restart: bool, folder: Path
) -> None:
    store = open_store(folder)
    for number in range(3):
        store.put(key(number), payload(number))
    store.flush()
    if restart:
        store.close()
    file_of(folder, 0).unlink()
    HARMS[what](file_of(folder, 0), folder)
    with open_store(folder) if restart else store as again:
        assert [again.get(key(number)) for number in range(3)] == [None, payload(1), payload(2)]
        assert os.path.lexists(file_of(folder, 0)) == ("folder" in what), "what is not ours is not removed"
        again.put(key(0), payload(0))
        again.flush()
        assert (again.get(key(0)) == payload(0)) != ("folder" in what) and again.stats()["bytes"] <= MIB


@pytest.mark.parametrize("other", ["secret", "weights"])
def test_files_of_another_secret_or_of_other_weights_are_misses(other: str, folder: Path) -> None:
    with open_store(folder) as store:
        store.put(key(0), payload(0))
    if other == "secret":
        (folder / "secret").unlink()
    with open_store(folder, fingerprint=b"others" if other == "weights" else b"weights") as store:
        assert store.has(key(0)) and store.get(key(0)) is None and store.stats()["damaged"] == 1


def test_the_budget_holds_as_seen_from_outside_and_the_least_recently_used_goes(folder: Path) -> None:
    budget = 100_000
    with open_store(folder, budget) as store:
        draw, kept = random.Random(1), 0
        for number in range(300):
            store.put(key(number), payload(number, draw.choice((10, 3_000, 5_000, 20_000))))
            store.flush()
            assert on_disk(folder) <= budget and store.stats()["bytes"] == on_disk(folder)
            assert sum(file.stat().st_blocks * 512 for file in folder.iterdir()) <= budget
            assert store.get(key(0)) is not None, "what is read again and again stays"
            kept = max(kept, on_disk(folder))
        assert kept > 0.75 * budget
        there = [number for number in range(300) if store.has(key(number))]
        assert there[0] == 0 and there[1:] == list(range(there[1], 300)), "the oldest went first"
        assert store.stats()["evicted"] == 300 - len(there) and store.stats()["damaged"] == 0


def test_while_a_file_is_being_written_the_budget_holds_and_no_half_of_it_has_its_name(folder: Path) -> None:
    budget, seen, torn, stop = 12 * MIB, [0], set[int](), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            total = 0
            for file in folder.iterdir():
                try:
                    status = file.lstat()
                except FileNotFoundError:
                    continue
                total += status.st_blocks * 512
                if file.name.endswith(SUFFIX) and ".part" not in file.name:
                    torn.add(status.st_size)
            seen[0] = max(seen[0], total)

    with open_store(folder, budget) as store:
        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(40):
            store.put(
                key(number), payload(number, 4_000_000)
            )  # so large that its write takes longer than a look at the folder
            store.flush()
        stop.set()
        watcher.join()
    # Another's listing is no snapshot: what it saw first may be gone while it counts what came since. One file at the most.
    assert 8 * MIB < seen[0] <= budget + 4_005_888
    assert len(torn) == 1 and torn.pop() > 4_000_000, "under its name a file is whole"


def test_use_is_remembered_over_a_restart_and_a_smaller_budget_takes_the_oldest(folder: Path) -> None:
    with open_store(folder) as store:
        for number in range(10):
            store.put(key(number), payload(number))
        store.flush()
        assert store.get(key(0)) and store.get(key(3))
    with open_store(folder, budget=8192 + 4 * 8192) as store:
        assert [number for number in range(10) if store.has(key(number))] == [0, 3, 8, 9]
        assert on_disk(folder) <= store.budget


def test_what_is_larger_than_the_budget_is_dropped_and_takes_nothing_with_it(store: DiskStore) -> None:
    assert not store.put(key(9), bytes(MIB)) and not store.has(key(9))
    assert store.stats()["dropped"] == 1 and store.stats()["files"] == 3


def test_writes_that_failed_hold_no_room_in_the_queue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, replace = threading.Event(), os.replace

    def fails(*names: str, **places: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def slow(*names: str, **places: int) -> None:
        disk.wait(60)
        replace(*names, **places)

    with open_store(folder, 64 * MIB, queue_bytes=4 * MIB) as store:
        store.queue_bytes = 3 * 4096
        for number in range(20, 24):  # a small payload takes a page of the disk, and of the queue until it is written
            assert store.put(key(number), payload(0, 100))
            store.flush()
        store.queue_bytes = 4 * MIB
        monkeypatch.setattr(os, "replace", fails)
        for number in range(5):
            assert store.put(key(number), payload(0, MIB))
            store.flush()
        assert store.stats()["dropped"] == 5
        monkeypatch.setattr(os, "replace", slow)
        assert store.put(key(10), payload(1, MIB)) and store.put(key(11), payload(2, MIB)), "while the first is written"
        disk.set()
        store.flush()
        assert store.stats()["written"] == 6 and store.stats()["dropped"] == 5
        assert store._pending_bytes == 0


def test_leftovers_of_ours_are_removed_and_nothing_else_is_touched(folder: Path) -> None:
    open_store(folder).close()
    ours = [folder / f"{key(7).hex()}.123.part{SUFFIX}", folder / f"secret.ab.part{SUFFIX}", folder / f"x{SUFFIX}"]
    theirs = [folder / "notes.txt", folder / key(7).hex(), folder / f"{key(7).hex()}.part", folder / f"a{SUFFIX}.bak"]
    for file in ours + theirs:
        file.write_bytes(b"x")
    open_store(folder).close()
    assert not any(map(Path.exists, ours)) and all(map(Path.exists, theirs))


def secret_of(folder: Path) -> bytes:
    with open_store(folder) as store:
        return store.secret


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_torn_secret_is_made_anew(content: bytes, folder: Path) -> None:
    open_store(folder).close()
    (folder / "secret").write_bytes(content)
    secret = secret_of(folder)
    assert len(secret) == 32 and secret == secret_of(folder)


def test_a_second_engine_on_one_folder_is_told_who_and_what_to_do(store: DiskStore, folder: Path) -> None:
    with pytest.raises(RorqualError, match=rf"another process .*: process {os.getpid()}.*\n.*its own folder"):
        open_store(folder)
    assert store.get(key(0)) == payload(0), "and the first goes on"
    store.close()
    open_store(folder).close()


@pytest.mark.parametrize("below", ["", "cache"])
def test_a_folder_that_cannot_be_used_is_named_with_what_to_do(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="another folder") as refused:
        open_store(tmp_path / "file" / below)
    assert str(tmp_path / "file" / below) in str(refused.value)


FULL = """
import resource, sys
from pathlib import Path
from rorqual.engine.kv_cache.disk import DiskStore
store = DiskStore(Path(sys.argv[1]), 1 << 20, b"weights")
store.put(bytes(32), b"early")
store.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
for number in range(1, 5):
    store.put(bytes([number]) * 32, bytes(5_000))
    store.flush()
print(store.stats()["dropped"], store.stats()["written"], store.get(bytes(32)), store.get(b"\\1" * 32))
store.close()
"""


def test_a_disk_that_fills_costs_what_was_to_be_kept_and_is_said_once(folder: Path) -> None:
    """The size of files is limited to 0 bytes in the process: the kernel refuses every write, as on a full disk."""
    done = subprocess.run([sys.executable, "-c", FULL, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "4 1 b'early' None\n"
    assert len(done.stderr.splitlines()) == 1 and "cannot write to the disk cache" in done.stderr
    assert not list(folder.glob(f"*.part{SUFFIX}"))


def test_readers_and_the_writer_and_evictions_at_once_give_the_exact_payload_or_none(folder: Path) -> None:
    with open_store(folder, 150_000) as store:

        def read(seed: int) -> int:
            """How many payloads were wrong. The disk may be slow: until enough was read and evicted."""
            draw, wrong, end = random.Random(seed), 0, time.monotonic() + 60
            while time.monotonic() < end and min(store.stats()["evicted"], store.stats()["read"]) <= 10:
                for number in draw.choices(range(40), k=200):
                    got = store.get(key(number))
                    wrong += got not in (None, payload(number))
                    if got is None:
                        store.put(key(number), payload(number))
            return wrong

        with ThreadPoolExecutor(3) as readers:
            assert sum(readers.map(read, range(3))) == 0
        store.flush()
        counts = store.stats()
        assert counts["damaged"] == 0 and counts["evicted"] > 10 and counts["read"] > 10
        assert counts["bytes"] == on_disk(folder) <= 150_000


def test_after_kills_at_random_moments_every_get_is_none_or_exact(tmp_path: Path) -> None:
    kills = kill_writers(tmp_path / "cache", kills=15, seed=3)
    assert len(kills) == 15 and all(kill.wrong == 0 for kill in kills)
    assert sum(kill.hits for kill in kills) > 100 and sum(kill.leftovers for kill in kills) > 0
