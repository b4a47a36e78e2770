"""`rorqual serve` with a watch on its event loop: `python watched.py REPORT serve RUN ...`. SIGUSR1 begins a new phase.

For each phase the report says of the callback that was longest: processor seconds (garbage collection is the thread's own work, too), and, where
the report is called `counted.json`, calls of functions, which do not depend on the machine, and which functions were called in the loop
with more than 64 KiB of anything. `late`: seconds that a timer of the loop came too late; `held`: of these, what this process can be blamed
for, as it worked no longer meanwhile, in all its threads; `collected`: of the longest garbage collection,
in whatever thread, as all wait for it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

MOST = 65_536
TICK = 0.005
PASS_ON = {
    # They hand on what is as long as a body or a reply, and do not look at it: asyncio's own, and ours.
    "put_nowait", "_put", "_get", "set_result", "_queue_output", "_slices", "_write_messages", "Sliced", "__init__", "init_headers", "render",
    "write", "pause_reading",
}  # fmt: skip


class Watch:
    """Counts what the loop's callbacks do."""

    def __init__(self) -> None:
        self.phases: list[dict[str, Any]] = []
        self.calls = 0
        self._due: float | None = None
        self._collecting = self._spent = 0.0
        self.begin()

    def begin(self, *_: object) -> None:
        self.phases.append(
            {
                "calls": 0,
                "seconds": 0.0,
                "where": "",
                "large": [],
                "callbacks": 0,
                "late": 0.0,
                "held": 0.0,
                "collected": 0.0,
            }
        )

    def tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now, spent, phase = time.monotonic(), time.process_time(), self.phases[-1]
        if self._due is not None:
            late = now - self._due
            phase["late"] = max(phase["late"], late)
            phase["held"] = max(phase["held"], min(late, spent - self._spent))
        self._due, self._spent = now + TICK, spent
        loop.call_later(TICK, self.tick, loop)

    def collect(self, phase: str, _: object) -> None:
        now = time.monotonic()
        if phase == "stop":
            self.phases[-1]["collected"] = max(self.phases[-1]["collected"], now - self._collecting)
        self._collecting = now

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        if event not in ("call", "c_call"):
            return
        self.calls += 1
        if event == "call":
            self.look(frame, frame.f_code)

    def look(self, frame: FrameType, code: CodeType) -> None:
        for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
            value = frame.f_locals.get(name)
            if isinstance(value, bytes | bytearray | memoryview | str | list | tuple | dict) and len(value) > MOST:
                found = f"{code.co_qualname} ({name}: {len(value):,})"
                if code.co_name not in PASS_ON and found not in self.phases[-1]["large"]:
                    self.phases[-1]["large"].append(found)

    def run(self, handle: asyncio.Handle, original: Any) -> None:
        calls, began = self.calls, time.thread_time()
        original(handle)
        seconds, phase = time.thread_time() - began, self.phases[-1]
        phase["callbacks"] += 1
        if self._due is None:
            self.tick(handle._loop)  # type: ignore[attr-defined]
        phase["seconds"] = max(phase["seconds"], seconds)
        if self.calls - calls > phase["calls"]:
            phase["calls"], phase["where"] = (
                self.calls - calls,
                getattr(handle._callback, "__qualname__", "a step of a task"),
            )


def main() -> None:
    report, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
    from rorqual.cli.main import main as rorqual

    watch, original = Watch(), asyncio.Handle._run
    asyncio.Handle._run = lambda handle: watch.run(handle, original)  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, watch.begin)
    if report.name == "counted.json":  # which costs time
        sys.setprofile(watch.profile)
    else:
        gc.callbacks.append(watch.collect)
    try:
        rorqual()
    finally:
        sys.setprofile(None)
        report.write_text(json.dumps(watch.phases, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
