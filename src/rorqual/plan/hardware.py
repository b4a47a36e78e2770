"""The table of hardware, one row per type of device, with sources. To add a device type, add a row.

Peak FLOP/s are for dense matrix products. Data sheets often give twice the dense peak, because data sheets assume structured
sparsity. Memory sizes are in decimal units (1 GB = 10^9 bytes), as in data sheets. `link` is a device's one-way bandwidth to
the other devices of the same machine. Prices are rental prices on the given date. The prices of providers differ by a factor
of two for the same device, so pass `price=` if you know your price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rorqual.core.errors import ConfigError, suggest_name

Dtype = Literal["fp32", "bf16", "fp8"]
T, G = 1e12, 1e9
V3_USED = 0.39
"""Share of the bf16 peak FLOP/s that DeepSeek-V3's training reached on 2,048 H800: 38.94 % (ISCA 2025, table 4, causal
MFU)."""
REACHED: Mapping[str, float] = {"Llama-3.1-405B": 0.36, "Llama-3.1-70B": 0.27, "Llama-3.1-8B": 0.15}
"""Share of the H100's bf16 peak FLOP/s that each complete training run of Llama 3.1 reached.

The shares are computed from the H100-hours in Llama 3.1's model card. The computation uses 15.6T training tokens for the 405B
model, and 15T training tokens for the 70B and 8B models, because the model card gives only "15T+".

The H100-hours in the model card include restarts, evaluations, training on long rows and later training stages. A plan that
assumes V3's share of the peak (`V3_USED`) therefore gives fewer hours than the model card. A test recomputes the shares in
`REACHED`.
"""
MARKET = "middle of specialist clouds' prices, mercatus-ai.com/blog/cloud-gpu-pricing, May 2026"


@dataclass(frozen=True)
class Device:
    """A row of the hardware table.

    `peak` is the peak FLOP/s by dtype. `bandwidth` and `link` are in bytes per second. `node` is the number of devices per
    machine. `price` is the rental price in USD per device-hour, or None if no rental price is known. `utilisation` is the
    share of the bf16 peak that training plans assume by default.
    """

    name: str
    title: str
    peak: Mapping[Dtype, float]
    bandwidth: float
    memory: float
    link: float
    node: int
    price: float | None
    source: str
    price_source: str
    utilisation: float = V3_USED

    def flops(self, dtype: Dtype) -> float:
        """Return the peak FLOP/s for `dtype`. Raises ConfigError if the device does not support `dtype`."""
        if dtype not in self.peak:
            known = ", ".join(self.peak)
            raise ConfigError(f"{self.title} does not support {dtype}", where="dtype", remedy=f"Use one of: {known}.")
        return self.peak[dtype]


DEVICES = (
    Device("h100", "NVIDIA H100 SXM", {"fp32": 67 * T, "bf16": 989.4 * T, "fp8": 1978.9 * T}, 3.35 * T, 80 * G, 450 * G, 8,
           3.00, "NVIDIA H100 data sheet, without sparsity", MARKET),
    Device("h800", "NVIDIA H800 SXM", {"fp32": 67 * T, "bf16": 989.4 * T, "fp8": 1978.9 * T}, 3.35 * T, 80 * G, 200 * G, 8,
           2.00, "H100's chip, NVLink reduced from 900 to 400 GB/s (ISCA 2025, section 4.1)", "DeepSeek-V3 report, table 1: assumed"),
    Device("h200", "NVIDIA H200 SXM", {"fp32": 67 * T, "bf16": 989.4 * T, "fp8": 1978.9 * T}, 4.8 * T, 141 * G, 450 * G, 8,
           4.00, "NVIDIA H200 data sheet, without sparsity", MARKET),
    Device("a100", "NVIDIA A100 80GB SXM", {"fp32": 19.5 * T, "bf16": 312 * T}, 2.039 * T, 80 * G, 300 * G, 8,
           1.30, "NVIDIA A100 data sheet, without sparsity", MARKET),
    Device("h20", "NVIDIA H20", {"fp32": 44 * T, "bf16": 148 * T, "fp8": 296 * T}, 4.0 * T, 96 * G, 450 * G, 8,
           None, "published specification of November 2023, without sparsity", "no public rental price found"),
    Device("b200", "NVIDIA B200 SXM", {"fp32": 75 * T, "bf16": 2250 * T, "fp8": 4500 * T}, 8.0 * T, 180 * G, 900 * G, 8,
           5.98, "NVIDIA DGX B200 data sheet, one eighth, without sparsity",
           "RunPod, deploybase.ai/articles/runpod-gpu-pricing, March 2026"),
    Device("mi300x", "AMD Instinct MI300X", {"fp32": 163.4 * T, "bf16": 1307.4 * T, "fp8": 2614.9 * T}, 5.3 * T, 192 * G,
           448 * G, 8, 1.85, "AMD Instinct MI300X data sheet, without sparsity", "Vultr, gpu.blog, 2026"),
    Device("rtx4090", "NVIDIA RTX 4090", {"fp32": 82.6 * T, "bf16": 165.2 * T, "fp8": 330.3 * T}, 1.008 * T, 24 * G, 32 * G, 8,
           0.60, "NVIDIA Ada architecture paper, fp32 accumulation, without sparsity; PCIe 4.0 x16",
           "RunPod on demand, deploybase.ai/articles/runpod-gpu-pricing, March 2026"),
    Device("ascend910b", "Huawei Ascend 910B", {"bf16": 320 * T}, 1.6 * T, 64 * G, 196 * G, 8, None,
           "press reports, fp16 (variants of 280 to 400 are reported); half of a 910C's bandwidth and link", "no public rental price found"),
    Device("ascend910c", "Huawei Ascend 910C", {"bf16": 780 * T}, 3.2 * T, 128 * G, 392 * G, 16, None,
           "bf16 and memory: DigiTimes via techpowerup.com/335749; link: 784 GB/s in both directions, reported",
           "no public rental price found"),
    Device("cpu", "two cores with AVX-512, laptop class", {"fp32": 230 * G, "bf16": 460 * G}, 29.5 * G, 16 * G, 29.5 * G, 1,
           0.10, "measured: 115 and 230 GFLOP/s per core, 29.5 GB/s from memory; 16 GB assumed",
           "0.05 USD per core-hour, the ledger's assumption", 0.27),
)  # fmt: skip


def device_names() -> tuple[str, ...]:
    """Return every name that the function `device` accepts."""
    return tuple(row.name for row in DEVICES)


def device(name: str) -> Device:
    """Return the row of the hardware table called `name`, ignoring case. If no row has this name, raises ConfigError with the
    nearest name."""
    plain = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    for row in DEVICES:
        if row.name == plain:
            return row
    raise ConfigError(f"unknown hardware '{name}'", where="hardware", remedy=suggest_name(plain, device_names()))
