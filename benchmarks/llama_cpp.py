"""Does llama.cpp say what we say? A run, or a GGUF file, in F32 in both: 64 greedy tokens after 20 prompts.

    python benchmarks/llama_cpp.py RUN [--work FOLDER]

Needs xllamacpp. llama.cpp runs with one thread, its cache in F32, flash attention off.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rorqual.convert.gguf import export_gguf, import_gguf
from rorqual.core.records import RunDir
from rorqual.engine import Engine

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))

from llama_agrees import PROMPTS, parted
from llama_server import llama_cpp


def silent(done: int, total: int, name: str) -> None:
    """No progress."""


def main() -> None:
    """Export, run both, print where they part and the smallest margin between the first two tokens."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a run's folder, or a .gguf file to import first")
    with tempfile.TemporaryDirectory() as folder:
        parser.add_argument("--work", type=Path, default=Path(folder), help="where the files go; emptied unless given")
        a = parser.parse_args()
        run = a.run
        if run.suffix == ".gguf":
            import_gguf(run, a.work / "run", progress=silent)
            run = a.work / "run"
        export_gguf(RunDir(run), a.work / "model.gguf", dtype="f32", progress=silent)
        engine = Engine.from_run(run)
        context = min(engine.max_len, 256)
        with llama_cpp(a.work / "model.gguf", context) as server:
            found, least = parted(Engine.from_run(run, max_len=context), server, PROMPTS)
    print(f"{len(PROMPTS) - len(found)} of {len(PROMPTS)} prompts agree; the smallest margin is {least:.2g} nats")
    for line in found:
        print(f"  parted: {line}")


if __name__ == "__main__":
    main()
