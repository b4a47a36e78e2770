"""Compare 64 greedy tokens after 20 prompts with llama.cpp, for runs or GGUF files, both in F32.

    python benchmarks/llama_cpp.py NAME=RUN ...

Needs xllamacpp. llama.cpp runs with one thread, a KV cache in F32 and without flash attention. Each result is written under its NAME
to docs/results/llama-cpp.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from record import made_by

from rorqual.convert.gguf import export_gguf, import_gguf
from rorqual.core.records import RunDir, write_json
from rorqual.engine import Engine
from rorqual.model.load.run_directory import read_model_config

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))

from llama_agrees import PROMPTS, parted
from llama_server import llama_cpp

RESULT = Path(__file__).resolve().parent.parent / "docs" / "results" / "llama-cpp.json"


def silent(done: int, total: int, name: str) -> None:
    """Report no progress."""


def compare(run: Path, work: Path) -> dict[str, Any]:
    """Export the run, and run both engines. Return the divergences and the smallest margin between the two best tokens."""
    if run.suffix == ".gguf":
        import_gguf(run, work / "run", progress=silent)
        run = work / "run"
    export_gguf(RunDir(run), work / "model.gguf", dtype="f32", progress=silent)
    context = min(read_model_config(RunDir(run)).max_position_embeddings, 256)
    with llama_cpp(work / "model.gguf", context) as server:
        found, least = parted(Engine(run, max_len=context), server, PROMPTS)
    return {
        "prompts": len(PROMPTS),
        "equal": len(PROMPTS) - len(found),
        "parted": found,
        "smallest margin, nats": least,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="a run's folder, or a .gguf file to import first")
    torch.set_num_threads(1)
    document: dict[str, Any] = json.loads(RESULT.read_bytes()) if RESULT.is_file() else {}
    for word in parser.parse_args().runs:
        name, _, run = word.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            document[name] = compare(Path(run), Path(folder))
        print(name, json.dumps(document[name]), flush=True)
    command = "python benchmarks/llama_cpp.py " + " ".join(f"{w.partition('=')[0]}=RUN" for w in sys.argv[1:])
    write_json(RESULT, document | {"made by": made_by({}) | {"command": command, "xllamacpp": version("xllamacpp")}})


if __name__ == "__main__":
    main()
