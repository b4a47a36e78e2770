"""The compiled kernels of `csrc/`, called through ctypes. The structs are those of `csrc/step.h`, in the same order."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_void_p
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.engine.native.build import library_file
from rorqual.ops.quant import divide_by_scales, fit_4_bits

PANEL = 64
"""Number of outputs of a linear map that are stored together."""
TYPES = {torch.float32: 0, torch.bfloat16: 1}
INTEGERS = {8: 2, 4: 3}
"""Types of maps with weights of 8 and 4 bits."""
QUANTS = 32
"""Number of inputs of a quantised map that share a scale."""
LARGEST = {8: 127 * 65504.0, 4: 65504.0}
"""Largest absolute value of a quantised map's weights. The scale of 8 bits is the largest of a block, divided by 127, in half precision.
With 4 bits, the least weight of a block is kept in half precision."""
VARIANTS = ("avx512vnni", "avx512", "avx2")
"""Instruction sets with compiled kernels, fastest first."""
FORCED = "RORQUAL_NATIVE"
"""Environment variable that names the instruction set to use."""
FILE = library_file()


class LowRankTable(Structure):
    _fields_ = [
        ("down", c_void_p), ("up", c_void_p), ("rank", c_int64), ("first", c_int64), ("out", c_int64), ("type", c_int64)
    ]  # fmt: skip


class LinearTable(Structure):
    _fields_ = [
        ("panels", c_void_p), ("bias", c_void_p), ("in_", c_int64), ("out", c_int64), ("type", c_int64),
        ("low_rank", POINTER(LowRankTable)), ("parts", c_int64),
    ]  # fmt: skip


class RopeTable(Structure):
    _fields_ = [("cos", c_void_p), ("sin", c_void_p), ("dim", c_int64)]


class AttentionTable(Structure):
    _fields_ = [
        ("kind", c_int64), ("heads", c_int64), ("kv_heads", c_int64), ("width", c_int64),
        ("input", LinearTable), ("output", LinearTable), ("q_norm", c_void_p), ("k_norm", c_void_p), ("rope", RopeTable),
        ("q_rank", c_int64), ("kv_rank", c_int64), ("value_width", c_int64),
        ("q_up", LinearTable), ("absorb", POINTER(LinearTable)), ("expand", POINTER(LinearTable)), ("scale", c_float), ("eps", c_float),
    ]  # fmt: skip


class DenseTable(Structure):
    _fields_ = [("gate_up", LinearTable), ("down", LinearTable), ("width", c_int64)]


class FeedforwardTable(Structure):
    _fields_ = [
        ("shared", DenseTable), ("experts", POINTER(DenseTable)), ("router", LinearTable), ("bias", c_void_p), ("n_experts", c_int64),
        ("per_token", c_int64), ("groups", c_int64), ("groups_per_token", c_int64), ("score", c_int64),
        ("best_of_group", c_int64), ("normalized", c_int64), ("scale", c_float),
    ]  # fmt: skip


class LayerTable(Structure):
    _fields_ = [
        ("attention_norm", c_void_p),
        ("ffn_norm", c_void_p),
        ("attention", AttentionTable),
        ("ffn", FeedforwardTable),
    ]


class ModelTable(Structure):
    _fields_ = [
        ("layers", POINTER(LayerTable)), ("n_layers", c_int64), ("hidden", c_int64), ("vocab", c_int64), ("routers", c_int64),
        ("per_token", c_int64), ("embedding", c_void_p), ("embedding_type", c_int64), ("norm", c_void_p), ("head", LinearTable),
        ("eps", c_float),
    ]  # fmt: skip


class StepTable(Structure):
    _fields_ = [
        ("tokens", c_int64), ("sequences", c_int64), ("sampled", c_int64), ("blocks_per_sequence", c_int64),
        ("pool_type", c_int64), ("ids", c_void_p), ("positions", c_void_p), ("slots", c_void_p), ("embeddings", c_void_p),
        ("first_tokens", c_void_p), ("block_table", c_void_p), ("pools", c_void_p), ("last", c_void_p),
        ("hidden", c_void_p), ("experts", c_void_p), ("logits", c_void_p), ("logits_stride", c_int64),
        ("adapters", c_void_p),
    ]  # fmt: skip


class DecodingTable(Structure):
    _fields_ = [
        ("steps", c_int64), ("temperature", c_void_p), ("greedy", c_void_p), ("uniform", c_void_p), ("stops", c_void_p),
        ("n_stops", c_int64), ("ignores_stops", c_void_p), ("sampled", c_void_p), ("logprobs", c_void_p),
        ("done", c_int64),
    ]  # fmt: skip


ARGUMENTS: dict[str, list[Any]] = {
    "run_step": [POINTER(ModelTable), POINTER(StepTable), c_int64],
    "decode": [POINTER(DecodingTable), POINTER(ModelTable), POINTER(StepTable), c_int64],
    "apply_linear": [POINTER(LinearTable), c_void_p, c_int64, c_void_p, c_int64],
    "log_softmax": [c_void_p, c_int64, c_int64, c_int64, c_void_p],
    "draw": [c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p],
}


@lru_cache
def instruction_set() -> str | None:
    """Return the fastest instruction set of this processor with kernels, or None. The variable RORQUAL_NATIVE forces one."""
    capability = torch.backends.cpu.get_cpu_capability()
    if not FILE.is_file() or capability not in ("AVX512", "AVX2"):
        return None
    usable = VARIANTS[2:] if capability == "AVX2" else VARIANTS[0 if ctypes.CDLL(str(FILE)).has_vnni() else 1 :]
    forced = os.environ.get(FORCED, usable[0])
    if forced not in usable:
        raise ConfigError(
            f"this processor has no kernels for '{forced}'", where=FORCED, remedy=f"Use one of: {', '.join(usable)}."
        )
    return forced


@lru_cache
def kernel(name: str) -> Callable[..., Any]:
    """Return a C function of the chosen instruction set."""
    function = getattr(ctypes.CDLL(str(FILE)), f"{name}_{instruction_set()}")
    function.restype, function.argtypes = c_int, ARGUMENTS[name]
    return function


def pad_to_panels(columns: int) -> int:
    return -(-columns // PANEL) * PANEL


def to_panels(weight: Tensor) -> Tensor:
    """Return a weight [out, in] as panels [ceil(out / 64), in, 64]. Missing outputs are zeros."""
    out, width = weight.shape
    filled = torch.nn.functional.pad(weight.detach(), (0, 0, 0, -out % PANEL))
    return filled.view(-1, PANEL, width).transpose(1, 2).contiguous()


def to_quantized_panels(weight: Tensor, bits: int) -> Tensor:
    """Return a weight [out, in] as bytes of panels [ceil(out / 64), ceil(in / 32), 2176 or 1280] of 8 or 4 bits (`csrc/quantized.h`)."""
    return torch.cat(
        [_round_to_panels(rows, bits) for rows in weight.detach().split(16 * PANEL)]
    )  # few fp32 copies at a time


def _round_to_panels(weight: Tensor, bits: int) -> Tensor:
    out, width = weight.shape
    filled = torch.nn.functional.pad(weight.float(), (0, -width % QUANTS, 0, -out % PANEL))
    blocks = filled.view(len(filled) // PANEL, PANEL, -1, QUANTS)
    if bits == 8:
        scales = (blocks.abs().amax(-1) / 127).half()
        quants, shared = (divide_by_scales(blocks, scales).clamp(-127, 127) + 128).to(torch.uint8), [scales]
    else:
        quants, *shared = fit_4_bits(blocks)
    grouped = quants.unflatten(-1, (-1, 4)).permute(0, 2, 3, 1, 4)  # [panels, blocks, 8, 64, 4]
    if bits == 4:
        grouped = grouped[:, :, :4] | grouped[:, :, 4:] << 4
    halves = [part.transpose(1, 2).contiguous().view(torch.uint8) for part in shared]
    return torch.cat([grouped.flatten(2), *halves], dim=-1)


def from_quantized_panels(panels: Tensor, out: int, width: int) -> Tensor:
    """Return the weight [out, in] in float32 that quantised panels stand for."""
    wide = panels.shape[-1] == PANEL * (QUANTS + 2)  # 8 bits
    quants, *shared = panels.split(
        (PANEL * QUANTS, 2 * PANEL) if wide else (PANEL * QUANTS // 2, 2 * PANEL, 2 * PANEL), dim=-1
    )
    scales, least = (
        part.contiguous().view(torch.float16).float().transpose(1, 2).unsqueeze(-1) for part in (shared[0], shared[-1])
    )
    if not wide:
        quants = torch.cat([quants & 15, quants >> 4], dim=-1)
    blocks = quants.unflatten(-1, (-1, PANEL, 4)).permute(0, 3, 1, 2, 4).flatten(3).float()  # [panels, 64, blocks, 32]
    values = (blocks - 128) * scales if wide else blocks * scales + least
    return values.flatten(2).flatten(0, 1)[:out, :width].contiguous()


def from_panels(panels: Tensor, out: int) -> Tensor:
    """Return the weight [out, in] of panels."""
    return panels.transpose(1, 2).flatten(0, 1)[:out].contiguous()
