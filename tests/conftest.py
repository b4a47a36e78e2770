"""What all tests share."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# A shell ignores SIGINT for what it starts with `&`, and whatever that starts inherits it, up to the commands that tests interrupt. A handler,
# unlike being ignored, is not inherited: what tests start has the default again.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A property holds on a slow machine, too: hypothesis gives an example 200 ms by default.
settings.register_profile("default", settings.get_profile("default"), deadline=None)
settings.load_profile("default")

TIERS = {
    mark: set(names) for mark, names in json.loads((Path(__file__).parent / "tiers.json").read_text())["tests"].items()
}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect the 11,000 tests without garbage collection, and leave them out of every later one: it halves the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark `slow` what `make test-fast` leaves out, and `full` what only `make test-all` runs: see scripts/tiers.py."""
    for item in items:
        name = item.nodeid.partition("[")[0]
        if item.get_closest_marker("browser"):
            item.add_marker("full")
        for mark, names in TIERS.items():
            if name in names:
                item.add_marker(mark)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Append to the file RORQUAL_CORE_SECONDS what the test took of all cores, with the processes that it waited for."""
    before = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        if file := os.environ.get("RORQUAL_CORE_SECONDS"):
            with open(file, "a", encoding="utf-8") as out:
                out.write(f"{sum(os.times()[:4]) - before:.3f} {item.nodeid}\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Restore the number of threads after a test: a command with `threads=2` sets it for the process, and it changes the last bits."""
    import torch  # the other tests of a process have imported it

    before = torch.get_num_threads()
    try:
        return (yield)
    finally:
        torch.set_num_threads(before)
