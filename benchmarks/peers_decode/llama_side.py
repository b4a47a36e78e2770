"""llama.cpp through its own C functions, without a binding between: libraries in a folder (npm @node-llama-cpp/linux-x64), or xllamacpp's.

    python llama_side.py FILE.gguf --libraries FOLDER|xllamacpp --threads 1

A batch of sequences is one `llama_decode` a step, as in llama.cpp's own batched-bench; greedy tokens are picked by numpy.
`--quantize OUT.gguf` writes the file in F16 instead.
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
"""Bytes kept for the library's parameter structs, which it returns and takes by value: more than they have."""
CONTEXT = {"n_ctx": 0, "n_batch": 4, "n_ubatch": 8, "n_seq_max": 12, "n_threads": 28, "n_threads_batch": 32}
"""Where fields lie in llama_context_params of v0.5.0. `defaults` makes sure of it."""
FLASH = 52
DEFAULTS = {"n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4, "n_threads_batch": 4}
F16 = 1


class Params(c.Structure):
    """A struct that is patched by offset."""

    _fields_ = [("bytes", c.c_ubyte * ROOM)]

    def get(self, offset: int) -> int:
        return c.c_int32.from_buffer(self, offset).value

    def put(self, offset: int, value: int) -> None:
        c.c_int32.from_buffer(self, offset).value = value


class Batch(c.Structure):
    """llama_batch."""

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
    """The library, its kernels for this processor loaded."""
    if where == "xllamacpp":
        found = find_spec("xllamacpp")
        if found is None or not found.origin:
            raise SystemExit("pip install xllamacpp")
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
    """The defaults; a library whose struct is laid out otherwise is refused."""
    params: Params = lib.llama_context_default_params()
    for name, value in DEFAULTS.items():
        if params.get(CONTEXT[name]) != value:
            raise SystemExit(f"llama_context_params of this llama.cpp is laid out otherwise: {name} is not {value}")
    return params


class Llama:
    """A loaded model with one context for the sequences last asked for."""

    def __init__(self, lib: c.CDLL, file: str, threads: int, flash: int) -> None:
        self.lib, self.threads, self.flash = lib, threads, flash
        self.model = lib.llama_model_load_from_file(file.encode(), lib.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp refused {file}")
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.context, self.shape = None, (0, 0)
        self.last: list[int] = []
        self.batch = lib.llama_batch_init(2048, 0, 1)

    def room(self, batch: int, length: int) -> None:
        """A context of `batch` sequences of `length` tokens."""
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
            raise MemoryError("llama.cpp made no context")
        self.shape = (batch, length)

    def feed(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Feed (token, position, sequence, wanted); the greedy tokens of those wanted."""
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
        """All prompts, as many tokens a call as it takes, and then `new` steps."""
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
        raise SystemExit(f"llama.cpp did not write {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--libraries", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--flash", type=int, default=-1, help="flash attention: -1 as llama.cpp thinks best, 0, 1")
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
