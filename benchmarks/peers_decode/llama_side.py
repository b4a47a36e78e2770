"""Run llama.cpp through its C API, from libraries in a folder (npm @node-llama-cpp/linux-x64) or from xllamacpp.

    python llama_side.py FILE.gguf --libraries FOLDER|xllamacpp --threads 1

Each step calls `llama_decode` once for the whole batch, like llama.cpp's batched-bench. numpy picks the greedy tokens.
`--quantize OUT.gguf` instead writes the file in F16.
"""

from __future__ import annotations

import argparse
import ctypes as c
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from talk import Told, Watch, answer, prompts, told

ROOM = 512
"""Bytes reserved for the library's parameter structs, which are passed by value. This is more than they need."""
CONTEXT = {"n_ctx": 0, "n_batch": 4, "n_ubatch": 8, "n_seq_max": 12, "n_threads": 28, "n_threads_batch": 32}
"""Offsets of fields in llama_context_params of v0.5.0. `context_params` verifies them with `DEFAULTS`."""
FLASH = 52
DEFAULTS = {"n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4, "n_threads_batch": 4}
F16 = 1


class Params(c.Structure):
    """An opaque struct whose fields are read and written by offset."""

    _fields_ = [("bytes", c.c_ubyte * ROOM)]

    def get(self, offset: int) -> int:
        return c.c_int32.from_buffer(self, offset).value

    def put(self, offset: int, value: int) -> None:
        c.c_int32.from_buffer(self, offset).value = value


class Batch(c.Structure):
    """The struct `llama_batch`."""

    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.POINTER(c.c_float)),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


def library(where: str) -> c.CDLL:
    """Load the library with its kernels for this CPU."""
    if where == "xllamacpp":
        found = find_spec("xllamacpp")
        if found is None or not found.origin:
            raise SystemExit("xllamacpp is not installed: pip install xllamacpp")
        lib = c.CDLL(str(next(Path(found.origin).parent.glob("*.so"))))
    else:
        order = ("libggml-base.so", "libggml.*so", "libllama.*so")
        *_, ggml, lib = (c.CDLL(str(next(Path(where).glob(name))), mode=c.RTLD_GLOBAL) for name in order)
        ggml.ggml_backend_load_all_from_path(str(where).encode())
    for name in ("llama_context_default_params", "llama_model_default_params"):
        getattr(lib, name).restype = Params
    lib.llama_print_system_info.restype = c.c_char_p
    lib.llama_model_load_from_file.argtypes = [c.c_char_p, Params]
    lib.llama_init_from_model.argtypes = [c.c_void_p, Params]
    lib.llama_batch_init.restype = Batch
    lib.llama_decode.argtypes = [c.c_void_p, Batch]
    lib.llama_get_logits_ith.argtypes = [c.c_void_p, c.c_int32]
    lib.llama_get_logits_ith.restype = c.POINTER(c.c_float)
    lib.llama_memory_seq_rm.argtypes = [c.c_void_p, c.c_int32, c.c_int32, c.c_int32]
    lib.llama_memory_seq_rm.restype = c.c_bool
    lib.llama_memory_clear.argtypes = [c.c_void_p, c.c_bool]
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_get_memory", "llama_model_get_vocab"):
        getattr(lib, name).restype = c.c_void_p
    for name in ("llama_get_memory", "llama_model_get_vocab", "llama_vocab_n_tokens", "llama_free"):
        getattr(lib, name).argtypes = [c.c_void_p]
    lib.llama_backend_init()
    return lib


def context_params(lib: c.CDLL) -> Params:
    """Return the default context parameters. Exit if the library's struct has another layout."""
    params: Params = lib.llama_context_default_params()
    for name, value in DEFAULTS.items():
        if params.get(CONTEXT[name]) != value:
            raise SystemExit(f"this llama.cpp has another layout of llama_context_params: {name} is not {value}")
    return params


class Llama:
    """A loaded model with one context, sized for the last request."""

    def __init__(self, lib: c.CDLL, file: str, threads: int, flash: int) -> None:
        self.lib, self.threads, self.flash = lib, threads, flash
        self.model = lib.llama_model_load_from_file(file.encode(), lib.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {file}")
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.context, self.shape = None, (0, 0)
        self.last: list[int] = []
        self.batch = lib.llama_batch_init(2048, 0, 1)

    def room(self, batch: int, length: int) -> None:
        """Create a context for `batch` sequences of `length` tokens, unless it exists."""
        if self.shape == (batch, length):
            return
        if self.context:
            self.lib.llama_free(self.context)
        params = context_params(self.lib)
        params.put(CONTEXT["n_ctx"], batch * (-(-length // 256) * 256))
        params.put(CONTEXT["n_seq_max"], batch)
        params.put(CONTEXT["n_threads"], self.threads)
        params.put(CONTEXT["n_threads_batch"], self.threads)
        params.put(FLASH, self.flash)
        self.context = self.lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise MemoryError("llama.cpp cannot create a context")
        self.shape = (batch, length)

    def feed(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Decode rows of (token, position, sequence, wanted). Return the greedy next tokens of the wanted rows."""
        batch = self.batch
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        batch.n_tokens = len(rows)
        if self.lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        return [
            int(np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), (self.vocab,)).argmax())
            for i, row in enumerate(rows)
            if row[3]
        ]

    def measure(self, asked: Told) -> Told:
        """Time the prefill of all prompts, 2,048 tokens per call, and then `new` decode steps."""
        batch, length, new = asked["batch"], asked["prompt"], asked["new"]
        warm = bool(asked.get("warm")) and self.shape == (batch, length + new) and self.last
        self.room(batch, length + new)
        memory = self.lib.llama_get_memory(self.context)
        watch, prefill, prefilled = Watch(), [0.0, 0.0], 0
        if warm:
            for s in range(batch):
                self.lib.llama_memory_seq_rm(memory, s, length, -1)
        else:
            self.lib.llama_memory_clear(memory, True)
            given = prompts(batch, length, self.vocab)
            rows = [(t, p, s, p == length - 1) for s, ids in enumerate(given) for p, t in enumerate(ids)]
            watch.lap()
            self.last = [token for at in range(0, len(rows), 2048) for token in self.feed(rows[at : at + 2048])]
            prefill, prefilled = watch.lap(), len(rows)
        last, replies = self.last, [[token] for token in self.last]
        watch.lap()
        for step in range(new):
            last = self.feed([(token, length + step, s, True) for s, token in enumerate(last)])
            for reply, token in zip(replies, last):
                reply.append(token)
        return told(prefill, prefilled, watch.lap(), new * batch, replies)


def to_f16(lib: c.CDLL, file: str, out: str) -> None:
    lib.llama_model_quantize_default_params.restype = Params
    params: Params = lib.llama_model_quantize_default_params()
    params.put(4, F16)
    if lib.llama_model_quantize(file.encode(), out.encode(), c.byref(params)):
        raise SystemExit(f"llama.cpp cannot write {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--libraries", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--flash", type=int, default=-1, help="flash attention: -1 lets llama.cpp choose, 0 off, 1 on")
    parser.add_argument("--quantize", default="")
    a = parser.parse_args()
    lib = library(a.libraries)
    if a.quantize:
        to_f16(lib, a.file, a.quantize)
        return
    model = Llama(lib, a.file, a.threads, a.flash)
    info = {"engine": "llama.cpp", "system": lib.llama_print_system_info().decode(), "vocab": model.vocab}
    answer(info, model.measure)


if __name__ == "__main__":
    sys.exit(main())
