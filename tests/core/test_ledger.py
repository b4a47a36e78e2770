"""The ledger's sums are the clock's, whatever is killed, torn, nested or done again."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rorqual.core.errors import RorqualError
from rorqual.core.ledger import CORE_HOUR, UNACCOUNTED, Ledger, LedgerEntry, read_ledger, sum_entries


def spend(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


class Clock:
    """Brackets what a ledger counted, however long the machine makes us wait between two lines."""

    def __init__(self, path: Path) -> None:
        self.path, self.outer = path, time.monotonic()
        self.ledger = Ledger(path)
        self.inner = time.monotonic()

    def close(self) -> None:
        """Close the ledger and check that its sum lies between the clocks read inside and outside of it."""
        inner = time.monotonic() - self.inner
        self.ledger.close()
        assert inner <= sum_entries(read_ledger(self.path)).seconds <= time.monotonic() - self.outer


def by_stage(path: Path) -> dict[str, LedgerEntry]:
    return {entry.stage: entry for entry in read_ledger(path)}


def test_entries_add_up_to_the_wall_clock_and_say_what_was_spent(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    clock = Clock(path)
    ledger = clock.ledger
    time.sleep(0.05)
    with ledger.record_stage("train") as entry:
        entry.add({"tokens": 100, "sampled_tokens": 20, "flops": 7_000, "right": 4})
        entry.add({"tokens": 5, "flops": 300})
        spend(0.1)
    with ledger.record_stage("measure") as entry:
        entry.solved += 3
        entry.paid += 0.25
        time.sleep(0.1)
    closing = time.monotonic()
    clock.close()
    found, wall = by_stage(path), sum_entries(read_ledger(path)).seconds
    assert list(found) == [UNACCOUNTED, "train", "measure"]
    assert (found["train"].tokens, found["train"].flops, found["measure"].solved) == (125, 7_300, 3)
    assert found["train"].solved == 4 and found["train"].core_seconds >= 0.09 and found["measure"].core_seconds < 0.05
    assert found["measure"].cost_usd() == pytest.approx(0.25 + found["measure"].core_seconds / 3600 * CORE_HOUR)
    assert LedgerEntry("x", core_seconds=7200).cost_usd(core_hour=1.5) == 3.0
    ledger.close()
    assert sum_entries(read_ledger(path)).seconds - wall <= time.monotonic() - closing, (
        "closing twice counts nothing twice"
    )


def test_a_stage_done_again_costs_both(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for tokens in (10, 32):
        with Ledger(path).record_stage("train") as entry:
            entry.tokens += tokens
            time.sleep(0.02)
    assert by_stage(path)["train"].tokens == 42 and by_stage(path)["train"].seconds >= 0.04


def test_what_raises_is_counted_and_a_nested_stage_is_not_counted_twice(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    clock = Clock(path)
    ledger = clock.ledger
    with pytest.raises(KeyboardInterrupt), ledger.record_stage("outer") as outer:
        outer.tokens += 1
        time.sleep(0.03)
        with ledger.record_stage("inner") as inner:
            inner.tokens += 2
            time.sleep(0.06)
        raise KeyboardInterrupt
    clock.close()
    found = by_stage(path)
    assert found["inner"].seconds >= 0.06 and found["outer"].seconds >= 0.03
    assert (found["outer"].tokens, found["inner"].tokens) == (1, 2)


def test_a_session_without_a_stage_writes_nothing(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.jsonl").close()
    assert list(tmp_path.iterdir()) == [] and read_ledger(tmp_path / "ledger.jsonl") == []


KILLED = """
import sys, time
from pathlib import Path
from rorqual.core.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), whole_process=True, every=0.05)
with ledger.record_stage("train") as entry:
    print("on", flush=True)
    while True:
        entry.tokens += 1
        time.sleep(0.001)
"""


def test_a_kill_loses_no_more_than_a_beat(tmp_path: Path) -> None:
    path, began = tmp_path / "ledger.jsonl", time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"on\n"
    while by_stage(path).get("train", LedgerEntry("")).seconds < 0.4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    whole = time.monotonic() - began
    process.wait()
    found = by_stage(path)
    assert found["train"].tokens > 0
    assert 0.5 * whole < sum_entries(found.values()).seconds < whole + 0.05, (
        "start-up is counted, and all but the last beat"
    )


def test_the_processor_time_of_the_start_is_counted(tmp_path: Path) -> None:
    used = time.process_time()
    ledger = Ledger(tmp_path / "ledger.jsonl", whole_process=True)
    with ledger.record_stage("train"):
        pass
    ledger.close()
    assert by_stage(tmp_path / "ledger.jsonl")["unaccounted"].core_seconds >= used > 0


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"stage": "train", "tokens": 5}\n[]\n{"tokens": 4}\n{"stage": "tra')
    with Ledger(path).record_stage("train") as entry:
        entry.tokens += 2
    assert by_stage(path)["train"].tokens == 7


def test_many_writers_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"

    def work() -> None:
        ledger = Ledger(path, every=0.001)
        for _ in range(10):
            with ledger.record_stage("branch") as entry:
                entry.tokens += 1
                time.sleep(0.002)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert by_stage(path)["branch"].tokens == 40


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(RorqualError, match="cannot write"),
        Ledger(tmp_path / "file" / "ledger.jsonl").record_stage("train"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="what went wrong"),
        Ledger(tmp_path / "file" / "ledger.jsonl").record_stage("train"),
    ):
        raise ValueError("what went wrong")
