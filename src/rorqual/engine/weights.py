"""Detect weight changes, so that KV-cache blocks computed with other weights are never reused.

Before each step, `Weights` compares the data pointer and torch's version counter of every tensor. `Weights` also
compares every attribute of every module, such as an adapter's scale, an eps or a RoPE base. Comparing version counters
and attributes takes microseconds per module.

The version counter misses writes by fused optimizers, numpy, `tensor.data`, DLPack and mapped files. For inference
tensors, it misses all writes. So tensor values are compared before a cached block is reused and before a new block is
hashed.
"""

from __future__ import annotations

import platform
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType

import numpy as np
import torch
from torch import Tensor, nn

from rorqual.engine.kv_cache.block_hash import fingerprint_of
from rorqual.model import Decoder
from rorqual.ops.backends import Backend

ROUNDING = 5
"""Version of the engine's floating-point arithmetic. Increment it when the order of additions or multiplications
changes, so that old disk caches miss."""
WORDS, ROWS = 1024, 128
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, Enum, type)
COMMON, DICTS = frozenset(PLAIN), (dict, OrderedDict)
FUNCTIONS = (FunctionType, BuiltinFunctionType)


class Weights:
    """A fingerprint of a model's weights that changes when any weight or module attribute changes.

    `name` is the initial fingerprint. `contents` lets `look` compare tensor values. `watched=False` turns the
    detection off, for weights that no other code can reach. Thread-safe.
    """

    def __init__(self, model: Decoder, name: bytes, *, contents: bool, watched: bool = True) -> None:
        self._model, self._name, self._lock = model, name, threading.Lock()
        self._contents, self._watched = contents and watched, watched
        self._state, tensors = _state_of(model) if watched else ([], [])
        self._digest = digest(tensors) if self._contents else b""

    def look(self, *, contents: bool = False) -> bytes:
        """Return the 32-byte fingerprint of the current weights. The comparison reads all tensor values if both this
        call and the constructor set `contents`."""
        if self._watched:
            with self._lock:
                state, tensors = _state_of(self._model)
                current_digest = digest(tensors) if contents and self._contents else self._digest
                if (state, current_digest) != (self._state, self._digest):
                    self._name = secrets.token_bytes(32)
                self._state, self._digest = state, current_digest
        return self._name

    def changed(self) -> None:
        """Set a new fingerprint, for changes that `look` cannot detect."""
        with self._lock:
            self._name = secrets.token_bytes(32)


def fingerprint(model: Decoder, *, arithmetic: str = "") -> bytes:
    """Return a fingerprint of `model` that is the same in every process.

    The fingerprint covers tensor values, dtypes, module attributes, and everything that affects rounding: torch's
    version, the processor and `arithmetic`. A model that contains a local function, for example as a hook, gets a
    random fingerprint, so it never hits the disk cache.
    """
    leaves: list[object] = []
    tensors: list[Tensor] = []
    _walk(model, leaves, tensors, set())
    return fingerprint_of(
        {
            "weights": digest(tensors).hex(),
            "attributes": "\n".join(map(_stable_text, leaves)),
            "shapes": repr([(tuple(t.shape), t.dtype, t.device.type) for t in tensors]),
            "torch": torch.__version__,
            "processor": f"{torch.backends.cpu.get_cpu_capability()} {_processor_model()}",
            "layout": repr([kind.cache_spec() for kind in model.config.attentions]),
            "arithmetic": f"{ROUNDING} {arithmetic}",
        }
    )


def _processor_model() -> str:
    """Return the processor model. Two processors with the same torch CPU capability may round differently
    (docs/explanation/engine.md)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].split("\n")
    except (OSError, UnicodeDecodeError):
        return platform.processor() or platform.machine()
    return " ".join(line for line in lines if line.startswith(("vendor_id", "cpu family", "model", "flags")))


def _state_of(model: Decoder) -> tuple[list[object], list[Tensor]]:
    """Return two lists: first the module attributes and the metadata of all tensors, then the tensors. The first list
    shows most changes without reading tensor values."""
    leaves: list[object] = []
    tensors: list[Tensor] = []
    _walk(model, leaves, tensors, set())
    for tensor in tensors:
        version = -1 if tensor.is_inference() else tensor._version
        place = (tensor.data_ptr(), tensor.stride()) if tensor.layout == torch.strided else id(tensor)
        leaves.append((place, version, tensor.shape, tensor.dtype, tensor.device))
    return leaves, tensors


def _walk(value: object, leaves: list[object], tensors: list[Tensor], seen: set[int]) -> None:
    """Append the tensors inside `value` to `tensors`, and the plain values inside it to `leaves`. `seen` has the ids of
    the enclosing objects, to detect cycles."""
    if isinstance(value, PLAIN):
        leaves.append(value)
    elif isinstance(value, Tensor):
        tensors.append(value)
    elif isinstance(value, np.ndarray):
        leaves.append((value.shape, value.dtype.str, value.tobytes()))
    elif isinstance(value, Backend):
        pass  # the engine fingerprints its backend separately
    elif id(value) in seen:
        leaves.append("a cycle")
    else:
        seen.add(id(value))
        leaves.append(type(value))
        for part in _parts(value, leaves):
            if type(part) in COMMON:
                leaves.append(part)
            else:
                _walk(part, leaves, tensors, seen)
        seen.remove(id(value))


def _parts(value: object, leaves: list[object]) -> list[object]:
    """Return the objects inside `value`. Dictionary keys, sizes and functions are not returned, but appended
    to `leaves`."""
    if isinstance(value, nn.Module):
        # Skip empty dicts for speed: most modules have no hooks.
        value = {key: part for key, part in vars(value).items() if type(part) not in DICTS or part}
    if isinstance(value, dict):
        leaves += value
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        leaves.append(len(value))
        return list(value)
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, FUNCTIONS):
        leaves.append(value)
        cells = getattr(value, "__closure__", None) or ()
        captured = (cell.cell_contents for cell in cells)
        return [part for part in captured if isinstance(part, Tensor | int | float | list | dict)]
    return [vars(value)] if hasattr(value, "__dict__") else []


def _stable_text(leaf: object) -> str:
    """Return a string for a value in `leaves`. The string is the same in every process. Only a local function or class
    gets a random string."""
    if isinstance(leaf, type | Callable):  # type: ignore[arg-type]
        name = f"{leaf.__module__}.{leaf.__qualname__}"  # type: ignore[attr-defined]
        return secrets.token_hex(32) if "<" in name else name
    return repr(leaf)


@lru_cache
def _keys(device: torch.device) -> Tensor:
    """Return the hash keys [WORDS]: random, but the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(1 << 63), (1 << 63) - 1, (WORDS,), generator=generator).to(device)


@torch.no_grad()
def digest(tensors: list[Tensor]) -> bytes:
    """Return a 32-byte hash of the values of `tensors`. Different values collide with a probability of at most 2**-32.

    The tensors are read in rows of `WORDS` 64-bit words. For each row, two dot products with random keys are computed
    modulo 2**64: first of the words and the keys, then of the words' upper 32 bits and the keys. The two dot products are
    the multilinear hash of Lemire & Kaser (arXiv 1202.4961) over 32-bit characters with 64-bit keys. This hash reads
    about 7 GB/s per core; BLAKE2 reads 0.9 GB/s.
    """
    hash_ = blake2b(digest_size=32)
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_meta:
            continue
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if flat.storage_offset() % 8:
            flat = flat.clone()
        n_bytes = len(flat) // (8 * WORDS) * 8 * WORDS
        words = flat[:n_bytes].view(torch.int64).view(-1, WORDS)
        hash_.update(b"%d " % len(flat))
        upper = torch.empty_like(words[:ROWS])
        for rows in words.split(ROWS):
            hash_.update(_products(rows).cpu().numpy().tobytes())
            hash_.update(_products(torch.bitwise_right_shift(rows, 32, out=upper[: len(rows)])).cpu().numpy().tobytes())
        hash_.update(flat[n_bytes:].cpu().numpy().tobytes())
    return hash_.digest()


def _products(words: Tensor) -> Tensor:
    """Return the dot product of each row of `words` [rows, WORDS] with the keys, modulo 2**64: [rows]."""
    keys = _keys(words.device)
    return torch.mv(words, keys) if words.device.type == "cpu" else (words * keys).sum(1)
