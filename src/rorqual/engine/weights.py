"""Which weights a model has: what was cached of others must never serve.

`Weights` sees a change of anything that an answer depends on. It looks in two ways. At every step it compares where each tensor lies, torch's
count of its changes, and every attribute of every module (an adapter's scale, an eps, a base of RoPE), which takes microseconds a module. That
misses what torch does not count: fused optimizers, numpy, `tensor.data`, inference tensors, DLPack, mapped files. So the contents are
compared, too, before a cached block is used and before one is named.
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
"""To be raised by whoever changes in what order the engine's operations add or multiply: a folder filled before is then a miss."""
WORDS, ROWS = 1024, 128
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, Enum, type)
COMMON, DICTS = frozenset(PLAIN), (dict, OrderedDict)
FUNCTIONS = (FunctionType, BuiltinFunctionType)


class Weights:
    """Names what a model computes. `look` gives another name once anything has changed.

    `name`: the first one. `contents`: compare the values of the tensors, too. `watched`: False for weights that nobody else can reach.
    Several threads may look.
    """

    def __init__(self, model: Decoder, name: bytes, *, contents: bool, watched: bool = True) -> None:
        self._model, self._name, self._lock = model, name, threading.Lock()
        self._contents, self._watched = contents and watched, watched
        self._state, tensors = _state_of(model) if watched else ([], [])
        self._digest = digest(tensors) if self._contents else b""

    def look(self, *, contents: bool = False) -> bytes:
        """The name of the weights as they are now: 32 bytes. `contents`: read every value."""
        if self._watched:
            with self._lock:
                state, tensors = _state_of(self._model)
                found = digest(tensors) if contents and self._contents else self._digest
                if (state, found) != (self._state, self._digest):
                    self._name = secrets.token_bytes(32)
                self._state, self._digest = state, found
        return self._name

    def changed(self) -> None:
        """Give another name, whatever `look` sees."""
        with self._lock:
            self._name = secrets.token_bytes(32)


def fingerprint(model: Decoder, *, arithmetic: str = "") -> bytes:
    """Name what `model` computes, the same in every process: values, attributes of modules, type, and what decides how it is rounded.

    Nothing is found in a folder by a model whose code was replaced in this process (a hook, a local function): its name is random.
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
    """Of the processor: two makes of one capability round in two ways (docs/engine.md)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].split("\n")
    except (OSError, UnicodeDecodeError):
        return platform.processor() or platform.machine()
    return " ".join(line for line in lines if line.startswith(("vendor_id", "cpu family", "model", "flags")))


def _state_of(model: Decoder) -> tuple[list[object], list[Tensor]]:
    """All that can be compared without reading a value, and the tensors."""
    leaves: list[object] = []
    tensors: list[Tensor] = []
    _walk(model, leaves, tensors, set())
    for tensor in tensors:
        version = -1 if tensor.is_inference() else tensor._version
        place = (tensor.data_ptr(), tensor.stride()) if tensor.layout == torch.strided else id(tensor)
        leaves.append((place, version, tensor.shape, tensor.dtype, tensor.device))
    return leaves, tensors


def _walk(value: object, leaves: list[object], tensors: list[Tensor], seen: set[int]) -> None:
    """Append what `value` is made of: tensors, and plain values in an order of their own. `seen`: objects around it."""
    if isinstance(value, PLAIN):
        leaves.append(value)
    elif isinstance(value, Tensor):
        tensors.append(value)
    elif isinstance(value, np.ndarray):
        leaves.append((value.shape, value.dtype.str, value.tobytes()))
    elif isinstance(value, Backend):
        pass  # an engine brings its own
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
    """What is inside an object; its keys, and a function itself, are put down in `leaves`."""
    if isinstance(value, nn.Module):
        # Most modules have no hooks.
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
    """A leaf in words that another process would use, too."""
    if isinstance(leaf, type | Callable):  # type: ignore[arg-type]
        name = f"{leaf.__module__}.{leaf.__qualname__}"  # type: ignore[attr-defined]
        return secrets.token_hex(32) if "<" in name else name
    return repr(leaf)


@lru_cache
def _keys(device: torch.device) -> Tensor:
    """[WORDS], random and always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(1 << 63), (1 << 63) - 1, (WORDS,), generator=generator).to(device)


@torch.no_grad()
def digest(tensors: list[Tensor]) -> bytes:
    """32 bytes of the values of `tensors`, which another value anywhere changes but with a chance of 2**-32 or less.

    Each row of `WORDS` words of 64 bits is hashed by a sum of products with random keys, once of whole words and once of their upper
    halves, both modulo 2**64: together the multilinear hash of Lemire & Kaser (1202.4961), of 32-bit characters under 64-bit keys. It reads
    some 7 GB/s a core, BLAKE2 0.9.
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
    """[rows, WORDS] -> [rows]: sums of products with the keys, modulo 2**64."""
    keys = _keys(words.device)
    return torch.mv(words, keys) if words.device.type == "cpu" else (words * keys).sum(1)
