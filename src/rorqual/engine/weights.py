"""Detect changed weights, so that blocks cached under other weights are never used.

`Weights` detects a change of anything that a completion depends on. Each step compares the address and torch's version
counter of every tensor. It also compares every attribute of every module, such as an adapter's scale, an eps or a RoPE
base. That takes microseconds per module. This comparison misses writes that torch does not count: fused optimizers,
numpy, `tensor.data`, inference tensors, DLPack, mapped files. So values are also compared before a cached block is used
and before one is hashed.
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

ROUNDING = 3
"""Version of the engine's rounding. Increase it when the order of additions or multiplications changes: old disk caches
then miss."""
WORDS, ROWS = 1024, 128
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, Enum, type)
COMMON, DICTS = frozenset(PLAIN), (dict, OrderedDict)
FUNCTIONS = (FunctionType, BuiltinFunctionType)


class Weights:
    """A fingerprint of a model's weights that changes when any weight or module attribute changes.

    `name` is the first fingerprint. `contents` also compares the values of tensors. `watched=False` is for weights that
    no other code can reach. Thread-safe.
    """

    def __init__(self, model: Decoder, name: bytes, *, contents: bool, watched: bool = True) -> None:
        self._model, self._name, self._lock = model, name, threading.Lock()
        self._contents, self._watched = contents and watched, watched
        self._state, tensors = _state_of(model) if watched else ([], [])
        self._digest = digest(tensors) if self._contents else b""

    def look(self, *, contents: bool = False) -> bytes:
        """Return the fingerprint of the current weights, 32 bytes. `contents` also reads every value."""
        if self._watched:
            with self._lock:
                state, tensors = _state_of(self._model)
                found = digest(tensors) if contents and self._contents else self._digest
                if (state, found) != (self._state, self._digest):
                    self._name = secrets.token_bytes(32)
                self._state, self._digest = state, found
        return self._name

    def changed(self) -> None:
        """Change the fingerprint, whether or not `look` detects a change."""
        with self._lock:
            self._name = secrets.token_bytes(32)


def fingerprint(model: Decoder, *, arithmetic: str = "") -> bytes:
    """Return a fingerprint of `model` that is the same in every process.

    It covers values, module attributes, dtypes, and everything that affects rounding: torch, processor, `arithmetic`. A
    model whose code was replaced in this process (a hook, a local function) gets a random one and never hits the disk
    cache.
    """
    leaves: list[object] = []
    tensors: list[Tensor] = []
    _walk(model, leaves, tensors, set())
    return fingerprint_of(
        {
            "weights": digest(tensors).hex(),
            "attributes": "\n".join(map(_lasting, leaves)),
            "shapes": repr([(tuple(t.shape), t.dtype, t.device.type) for t in tensors]),
            "torch": torch.__version__,
            "processor": f"{torch.backends.cpu.get_cpu_capability()} {_make()}",
            "layout": repr([kind.cache_spec() for kind in model.config.attentions]),
            "arithmetic": f"{ROUNDING} {arithmetic}",
        }
    )


def _make() -> str:
    """Return the processor model. Two models with the same capability may round differently (docs/explanation/engine.md)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].split("\n")
    except (OSError, UnicodeDecodeError):
        return platform.processor() or platform.machine()
    return " ".join(line for line in lines if line.startswith(("vendor_id", "cpu family", "model", "flags")))


def _state_of(model: Decoder) -> tuple[list[object], list[Tensor]]:
    """Return all state that can be compared without reading tensor values, and the tensors."""
    leaves: list[object] = []
    tensors: list[Tensor] = []
    _walk(model, leaves, tensors, set())
    for tensor in tensors:
        version = -1 if tensor.is_inference() else tensor._version
        place = (tensor.data_ptr(), tensor.stride()) if tensor.layout == torch.strided else id(tensor)
        leaves.append((place, version, tensor.shape, tensor.dtype, tensor.device))
    return leaves, tensors


def _walk(value: object, leaves: list[object], tensors: list[Tensor], seen: set[int]) -> None:
    """Append the tensors inside `value` to `tensors` and its plain values to `leaves`. `seen`: ids of the enclosing
    objects."""
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
    """Return the parts of an object. Its dictionary keys, or the function itself, are appended to `leaves`."""
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
        held = (cell.cell_contents for cell in cells)
        return [part for part in held if isinstance(part, Tensor | int | float | list | dict)]
    return [vars(value)] if hasattr(value, "__dict__") else []


def _lasting(leaf: object) -> str:
    """Return a text for a leaf that is the same in every process, or a random one for a local function or class."""
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
    """Return a 32-byte hash of the values of `tensors`. It misses a changed value with a probability of at most 2**-32.

    Each row of `WORDS` 64-bit words is hashed by sums of products with random keys modulo 2**64: once of whole words,
    once of their upper 32 bits. Together they are the multilinear hash of Lemire & Kaser (arXiv 1202.4961) over 32-bit
    characters with 64-bit keys. It reads about 7 GB/s per core; BLAKE2 reads 0.9 GB/s.
    """
    found = blake2b(digest_size=32)
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_meta:
            continue
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if flat.storage_offset() % 8:
            flat = flat.clone()
        whole = len(flat) // (8 * WORDS) * 8 * WORDS
        words = flat[:whole].view(torch.int64).view(-1, WORDS)
        found.update(b"%d " % len(flat))
        upper = torch.empty_like(words[:ROWS])
        for rows in words.split(ROWS):
            found.update(_products(rows).cpu().numpy().tobytes())
            found.update(_products(torch.bitwise_right_shift(rows, 32, out=upper[: len(rows)])).cpu().numpy().tobytes())
        found.update(flat[whole:].cpu().numpy().tobytes())
    return found.digest()


def _products(words: Tensor) -> Tensor:
    """Return the sums of products of `words` [rows, WORDS] with the keys, modulo 2**64: [rows]."""
    keys = _keys(words.device)
    return torch.mv(words, keys) if words.device.type == "cpu" else (words * keys).sum(1)
