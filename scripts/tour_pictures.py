"""Draw the pictures of docs/tour/ into docs/pictures/tour-*.png, from the library's own code and from docs/results/.

    python scripts/tour_pictures.py                # draw all, about 20 seconds
    python scripts/tour_pictures.py mla moe        # draw some
    python scripts/tour_pictures.py --out FOLDER   # draw into another folder

The numbers in `tour-invariance.png` depend on the processor. All other pictures are the same everywhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.kv_cache.manager import KVCacheManager
from rorqual.engine.request import SamplingParams
from rorqual.engine.sequence import Sequence
from rorqual.model import build
from rorqual.model.account import account
from rorqual.model.attention import AttentionConfig, GQAConfig
from rorqual.model.config import ModelConfig
from rorqual.model.ffn.router import GroupedTopKConfig
from rorqual.model.presets import preset
from rorqual.ops.backends import TORCH, TORCH_INVARIANT
from rorqual.ops.paged import BLOCK
from rorqual.recipes.models import v3_like
from rorqual.report.chart import render_figure
from rorqual.report.theme import LIGHT, Theme
from rorqual.train.balance import count_tokens_per_expert
from rorqual.train.objectives import GRPO
from rorqual.train.objectives.distil import divergence
from rorqual.train.objectives.grpo import DrawnTokens
from rorqual.train.sources.shaping import group_advantages

ROOT = Path(__file__).parent.parent
WIDTH = 7.4
"""Inches. At 150 dots per inch, the pages show a picture of 1,110 pixels at about 800."""


# ---- boxes and arrows


def canvas(width: float, height: float, *, rows: tuple[float, ...] = (1,)) -> tuple[Figure, list[Axes]]:
    """Return a figure with diagrams below each other. Each axis counts in inches, so that text and boxes keep their proportions."""
    figure = Figure(figsize=(width, height))
    axes, top = [], 1.0
    for share in rows:
        part = share / sum(rows)
        axis = figure.add_axes((0, top - part, 1, part))
        axis.set(xlim=(0, width), ylim=(0, height * part))
        axis.set_axis_off()
        axes.append(axis)
        top -= part
    return figure, axes


def box(
    axis: Axes, at: tuple[float, float], size: tuple[float, float], text: str, colour: str, *, faint: float = 0.14,
    fontsize: float = 9, weight: str = "normal", ink: str = LIGHT.ink,
) -> None:  # fmt: skip
    """Draw a rounded box with a text. `at` is its centre."""
    (x, y), (w, h) = at, size
    style = f"round,pad=0,rounding_size={min(0.07, h / 3)}"
    axis.add_patch(
        FancyBboxPatch((x - w / 2, y - h / 2), w, h, boxstyle=style, facecolor=to_rgba(colour, faint), edgecolor=colour)
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=fontsize, weight=weight, color=ink, linespacing=1.25)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """Draw an arrow from `start` to `end`."""
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    axis.add_patch(FancyArrowPatch(start, end, color=colour, **style))


# ---- 1. the model


def model(theme: Theme) -> Figure:
    """Draw one token's path through the model, and the life of a model."""
    figure, (top, bottom) = canvas(WIDTH, 5.8, rows=(3.95, 1.85))
    _path(top, theme)
    _life(bottom, theme)
    return figure


def _path(axis: Axes, theme: Theme) -> None:
    axis.text(0.15, 3.72, "One token's path", weight="bold", fontsize=9.5, color=theme.ink)
    y, h = 2.15, 0.6
    frame = FancyBboxPatch(
        (1.42, 1.02), 3.55, 2.4, boxstyle="round,pad=0,rounding_size=0.1", facecolor="none", edgecolor=theme.faint
    )
    frame.set_linestyle((0, (4, 3)))
    axis.add_patch(frame)
    axis.text(3.2, 3.22, "a block, repeated in each layer", ha="center", va="center", fontsize=8.5, color=theme.faint)
    box(axis, (0.68, y), (0.96, h), "embedding\nof token i", theme.before)
    box(axis, (2.27, y), (1.1, h), "norm, latent\nattention", theme.after)
    box(axis, (3.93, y), (1.2, h), "norm, mixture\nof experts", theme.on)
    box(axis, (5.62, y), (0.8, h), "final\nnorm", theme.before)
    box(axis, (6.72, y), (0.96, h), "head:\ntoken i + 1", theme.ink, faint=0.05)
    for start, end in ((1.16, 1.72), (2.82, 2.99), (3.17, 3.33), (4.53, 4.66), (4.84, 5.22), (6.02, 6.24)):
        arrow(axis, (start, y), (end, y), theme.ink)
    for start, plus in ((1.56, 3.08), (3.25, 4.75)):  # each part adds to the residual stream
        axis.plot([start, start, plus, plus], [y, y + 0.62, y + 0.62, y + 0.12], color=theme.ink, linewidth=1.1)
        axis.text(plus, y, "+", ha="center", va="center", fontsize=9, color=theme.ink)
        axis.add_patch(Circle((plus, y), 0.09, facecolor="none", edgecolor=theme.ink, linewidth=1.1))
        arrow(axis, (plus, y + 0.3), (plus, y + 0.09), theme.ink)
    box(axis, (2.27, 1.35), (1.1, 0.36), "paged cache", theme.after, faint=0.05, fontsize=8.5)
    arrow(axis, (2.12, y - h / 2), (2.12, 1.53), theme.after)
    arrow(axis, (2.42, 1.53), (2.42, y - h / 2), theme.after)
    box(axis, (3.93, 1.35), (1.2, 0.36), "router, bias", theme.on, faint=0.05, fontsize=8.5)
    arrow(axis, (3.93, 1.53), (3.93, y - h / 2), theme.on)
    low = 0.45
    box(axis, (3.93, low), (1.2, 0.56), "embedding\nof token i + 1", theme.before)
    box(axis, (5.62, low), (1.0, 0.56), "MTP\nmodule", theme.off)
    box(axis, (6.72, low), (0.96, 0.56), "head:\ntoken i + 2", theme.ink, faint=0.05)
    arrow(axis, (5.62, y - h / 2), (5.62, low + 0.28), theme.ink)
    arrow(axis, (4.53, low), (5.12, low), theme.ink)
    arrow(axis, (6.12, low), (6.24, low), theme.ink)


def _life(axis: Axes, theme: Theme) -> None:
    axis.text(0.15, 1.68, "The life of a model", weight="bold", fontsize=9.5, color=theme.ink)
    steps = (
        ("build", "inspect", theme.before),
        ("train on\nsolutions", "train sft", theme.after),
        ("reinforce", "train grpo", theme.after),
        ("distil into\na smaller one", "distil, train", theme.off),
        ("measure", "eval, compare", theme.on),
        ("serve", "chat, serve", theme.on),
    )
    pitch, w = 1.21, 0.98
    for number, (text, verb, colour) in enumerate(steps):
        x = 0.68 + number * pitch
        box(axis, (x, 1.0), (w, 0.58), text, colour)
        axis.text(x, 0.52, verb, ha="center", va="center", fontsize=8, family="DejaVu Sans Mono", color=theme.faint)
        if number:
            arrow(axis, (x - pitch + w / 2, 1.0), (x - w / 2, 1.0), theme.ink)
    axis.text(
        0.2,
        0.18,
        "Below each step: the verbs of rorqual that do it. A run folder joins them.",
        fontsize=8,
        color=theme.faint,
    )


# ---- 2. latent attention


def with_attention(config: ModelConfig, attention: AttentionConfig) -> ModelConfig:
    """Return a model that differs from `config` only in its attention."""
    stages = tuple(stage.model_copy(update={"attention": attention}) for stage in config.stages)
    return config.model_copy(update={"stages": stages})


def cache_sizes() -> list[tuple[str, int]]:
    """Return the cache bytes per token of DeepSeek-V3 with four kinds of attention, in bf16, as `account` counts them."""
    v3 = preset("deepseek-v3")
    heads = 128
    kinds = {
        f"MHA: {heads} key-value heads": GQAConfig(num_attention_heads=heads, num_key_value_heads=heads, head_dim=128),
        "GQA: 8 key-value heads": GQAConfig(num_attention_heads=heads, num_key_value_heads=8, head_dim=128),
        "MQA: 1 key-value head": GQAConfig(num_attention_heads=heads, num_key_value_heads=1, head_dim=128),
    }
    sizes = [(name, account(with_attention(v3, kind)).cache_bytes) for name, kind in kinds.items()]
    return [*sizes, ("MLA: latent 512 + 64", account(v3).cache_bytes)]


def mla(theme: Theme) -> Figure:
    """Draw the cache bytes per token of four kinds of attention."""
    sizes = cache_sizes()
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axis = figure.subplots()
    names = [name for name, _ in sizes]
    values = [size for _, size in sizes]
    colours = [theme.before] * (len(sizes) - 1) + [theme.after]
    bars = axis.barh(range(len(sizes)), values, color=colours, height=0.62)
    axis.bar_label(bars, [f"{size:,} bytes" for size in values], padding=5, fontsize=9, color=theme.ink)
    axis.set_yticks(range(len(sizes)), names, fontsize=9, color=theme.ink)
    axis.set_xscale("log")
    axis.set_xlim(1e4, 3e7)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_title("Cache of one token in DeepSeek-V3's 61 layers")
    axis.set_xlabel("logarithmic scale, bf16")
    axis.xaxis.set_major_locator(FixedLocator([1e4, 1e5, 1e6, 1e7]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:,.0f} KB"))
    axis.xaxis.set_minor_locator(NullLocator())
    return figure


# ---- 3. experts


EXPERTS, CHOSEN, TOKENS, STEPS, GAMMA = 16, 2, 2048, 120, 0.01


def loads(gamma: float) -> Tensor:
    """Return the load over the mean load [steps, experts] of an untrained router, on random tokens with a common part."""
    generator = torch.Generator().manual_seed(3)
    router = GroupedTopKConfig(n_routed_experts=EXPERTS, num_experts_per_tok=CHOSEN).build(32)
    router.gate.data = 0.15 * torch.randn(router.gate.shape, generator=generator)
    common = 0.9 * torch.randn(32, generator=generator)
    ratios = []
    for _ in range(STEPS):
        x = common + torch.randn(TOKENS, 32, generator=generator)
        with torch.no_grad():
            load = count_tokens_per_expert(router(x, TORCH, None), torch.ones(TOKENS, dtype=torch.bool), EXPERTS)
        router.balance(load, gamma)
        ratios.append(load / load.float().mean())
    return torch.stack(ratios)


def moe(theme: Theme) -> Figure:
    """Draw the load of the experts over steps, without and with the router bias."""
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axis, gamma, title in ((left, 0.0, "without balance"), (right, GAMMA, f"with a bias, γ = {GAMMA}")):
        ratios = loads(gamma)
        busiest, rarest = int(ratios[0].argmax()), int(ratios[0].argmin())
        low, high = ratios.amin(1), ratios.amax(1)
        axis.fill_between(range(STEPS), low, high, color=theme.before, alpha=0.3, linewidth=0, label="all 16 experts")
        axis.plot(ratios[:, busiest], color=theme.off, linewidth=1.6, label="busiest at step 0")
        axis.plot(ratios[:, rarest], color=theme.after, linewidth=1.6, label="least used at step 0")
        axis.axhline(1, color=theme.ink, linewidth=0.8, linestyle=(0, (2, 2)))
        axis.set_title(title)
        axis.set_xlabel("step")
    left.set_ylabel("load of an expert / mean load")
    left.set_ylim(bottom=0)
    right.legend(loc="upper right")
    return figure


# ---- 4. multi-token prediction


def mtp(theme: Theme) -> Figure:
    """Draw what each row of the MTP module reads and predicts, and the losses of `rorqual lab mtp`."""
    figure, (top, bottom) = canvas(WIDTH, 4.9, rows=(2.5, 2.4))
    _rows(top, theme)
    bottom.remove()
    axis = figure.add_axes((0.085, 0.095, 0.89, 0.35))
    data = json.loads((ROOT / "docs/results/lab/mtp.json").read_bytes())
    chart = next(chart for chart in data["charts"] if chart["name"] == "curves")
    styles = {"experts + latent": (theme.before, "without the module")}
    styles["experts + latent + MTP"] = (theme.off, "with the module")
    for series in chart["series"]:
        if series["label"] in styles:
            colour, label = styles[series["label"]]
            x, y = zip(*series["points"])
            axis.plot(x, y, color=colour, linewidth=1.7, label=label)
    axis.set_title("Loss of the next token in 300 steps, mean of five seeds")
    axis.set_xlabel("core-seconds of training")
    axis.set_ylabel("nats a token")
    axis.legend(loc="upper right")
    return figure


TEXT = ["12", "+", "34", "=", "46", "end"]


def _rows(axis: Axes, theme: Theme) -> None:
    axis.text(0.15, 2.28, "What a row reads and predicts", weight="bold", fontsize=9.5, color=theme.ink)
    left, pitch, w = 2.05, 0.95, 0.8
    levels = {"token": 0.25, "main": 0.78, "module": 1.36, "target": 1.92}
    names = {
        "token": "token",
        "main": "main model",
        "module": "MTP module",
        "target": "predicts",
    }
    for level, y in levels.items():
        axis.text(1.5, y, names[level], ha="right", va="center", fontsize=8.5, color=theme.faint)
    for number, text in enumerate(TEXT):
        x = left + number * pitch
        box(axis, (x, levels["token"]), (w, 0.28), text, theme.before)
        box(axis, (x, levels["main"]), (w, 0.28), f"h{number + 1}", theme.after)
        arrow(axis, (x, 0.39), (x, 0.64), theme.faint)
        if number + 2 < len(TEXT):
            box(axis, (x, levels["module"]), (w, 0.28), f"h{number + 1}, {TEXT[number + 1]}", theme.off)
            box(axis, (x, levels["target"]), (w, 0.28), TEXT[number + 2], theme.ink, faint=0.05)
            arrow(axis, (x, 0.92), (x, 1.22), theme.after)
            arrow(axis, (x + pitch - 0.28, 0.39), (x + 0.22, 1.22), theme.before)
            arrow(axis, (x, 1.5), (x, 1.78), theme.off)


# ---- 5. GRPO


def grpo(theme: Theme) -> Figure:
    """Draw the advantages of three groups of eight answers, and the clipped gain of a token."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    size = 8
    for shift, right_ones, colour in ((-0.27, 2, theme.off), (0, 4, theme.before), (0.27, 6, theme.after)):
        rewards = [1.0] * right_ones + [0.0] * (size - right_ones)
        advantages = group_advantages(rewards, [True] * size, std=True)
        label = f"{right_ones} of {size} right"
        left.bar(np.arange(size) + 1 + shift, advantages, width=0.25, color=colour, label=label)
    left.axhline(0, color=theme.ink, linewidth=0.8)
    left.set_title("Advantages in three groups")
    left.set_xlabel("answer, right ones first")
    left.set_ylabel("advantage")
    left.set_xticks(range(1, size + 1))
    left.grid(axis="x", visible=False)
    left.legend(loc="upper right")
    _gain(right, theme)
    return figure


def _gain(axis: Axes, theme: Theme) -> None:
    objective = GRPO()
    ratio = torch.linspace(0.4, 1.6, 241)
    for advantage, colour in ((1.0, theme.after), (-1.0, theme.off)):
        zeros = torch.zeros_like(ratio)
        drawn = DrawnTokens(
            advantage=torch.full_like(ratio, advantage), weight=zeros, sampled=zeros, old=zeros, tis=None, reference=None,
            answer=zeros.long(), counts=torch.tensor([len(ratio)]),
        )  # fmt: skip
        gain, _ = objective._token_objective(ratio.log(), ratio, drawn)
        axis.plot(ratio, gain, color=colour, linewidth=2)
        label = "advantage 1" if advantage > 0 else "advantage −1"
        axis.text(1.04, 0.72 * advantage, label, ha="center", va="center", fontsize=8.5, color=colour)
    for at, text in ((1 - objective.clip_low, "0.8"), (1 + objective.clip_high, "1.28")):
        axis.axvline(at, color=theme.faint, linewidth=0.8, linestyle=(0, (2, 2)))
        axis.text(at, 1.45, text, ha="center", va="bottom", fontsize=8, color=theme.faint)
    axis.set_title("What a token gains", pad=16)
    axis.set_xlabel("ratio: trainer's probability / sampler's")
    axis.set_ylabel("gain")
    axis.set_ylim(-1.7, 1.4)


# ---- 6. distillation


def best_students() -> tuple[Tensor, dict[str, Tensor]]:
    """Return a teacher with two modes over 40 tokens, and the best student with one mode for each divergence."""
    place = torch.arange(40.0)
    teacher = 0.62 * torch.exp(-((place - 10) ** 2) / 18) + 0.38 * torch.exp(-((place - 28) ** 2) / 18)
    p = (teacher / teacher.sum()).log()
    centre = torch.linspace(4, 36, 129).view(-1, 1, 1)
    width = torch.linspace(1.5, 16, 117).view(1, -1, 1)
    q = (-((place - centre) ** 2) / (2 * width**2)).log_softmax(-1).flatten(0, 1)  # every student
    best = {}
    for kind in ("forward", "reverse"):
        divergences = divergence(kind, p.expand_as(q), q, 0.1)
        best[kind] = q[divergences.argmin()].exp()
    return p.exp(), best


def distillation(theme: Theme) -> Figure:
    """Draw a teacher with two modes, and the best student with one mode for each divergence."""
    teacher, best = best_students()
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {"forward": "forward KL(p | q): covers both", "reverse": "reverse KL(q | p): takes one"}
    for axis, (kind, student) in zip(axes, best.items()):
        axis.bar(range(len(teacher)), teacher, width=0.85, color=theme.before, alpha=0.6, label="teacher p")
        colour = theme.after if kind == "forward" else theme.off
        axis.plot(student, color=colour, linewidth=2, label="student q")
        axis.set_title(titles[kind])
        axis.set_xlabel("token")
        axis.grid(axis="x", visible=False)
        axis.legend(loc="upper right")
    axes[0].set_ylabel("probability")
    return figure


# ---- 7. the paged cache


def block_tables() -> tuple[KVCacheManager, dict[str, Sequence], dict[str, int]]:
    """Return the cache manager, three requests with their blocks, and the number of tokens that each request found in the cache."""
    manager = KVCacheManager(14, b"sixteen bytes at least", b"weights", lambda block: b"", lambda block, data: False)
    system = list(range(2 * BLOCK + 20))
    requests, hits = {}, {}
    for number, (name, extra) in enumerate((("A", 80), ("B", 30), ("C", 130))):
        tokens = [*system, *[500 + number] * extra]
        requests[name] = request = Sequence(number, 0, tuple(tokens), SamplingParams(), key=0, limit=512, tokens=tokens)
        hits[name] = manager.match(request)
        manager.allocate_up_to(request, len(tokens))
        manager.cache_blocks(request, len(tokens))
    return manager, requests, hits


def cache(theme: Theme) -> Figure:
    """Draw the block tables of three requests with a common prefix, and the pool of blocks."""
    manager, requests, hits = block_tables()
    figure, (axis,) = canvas(WIDTH, 3.7)
    axis.text(0.15, 3.45, "Block tables", weight="bold", fontsize=9.5, color=theme.ink)
    axis.text(5.0, 3.45, "The pool", weight="bold", fontsize=9.5, color=theme.ink)
    colours = dict(zip(requests, (theme.after, theme.off, theme.on)))
    users = {
        block: [name for name, request in requests.items() if block in request.blocks]
        for block in range(manager.n_blocks)
    }
    for row, (name, request) in enumerate(requests.items()):
        y = 2.85 - row * 0.95
        axis.text(0.15, y, f"request {name}", va="center", fontsize=9, weight="bold", color=colours[name])
        label = f"{len(request.tokens)} tokens, {hits[name]} from the cache"
        axis.text(1.18, y - 0.36, label, va="center", fontsize=8, color=theme.faint)
        for place, block in enumerate(request.blocks):
            shared = len(users[block]) > 1
            x = 1.45 + place * 0.62
            box(axis, (x, y), (0.54, 0.4), str(block), theme.ink if shared else colours[name], faint=0.22)
    w, h = 0.5, 0.42
    for block in range(manager.n_blocks):
        x, y = 5.28 + block % 4 * 0.56, 3.0 - block // 4 * 0.62
        owners = users[block]
        colour = theme.grid if not owners else theme.ink if len(owners) > 1 else colours[owners[0]]
        ink = theme.ink if owners else theme.faint
        text = "pad" if not block else str(block)
        box(axis, (x, y), (w, h), text, colour, faint=0.22 if owners else 0.5, ink=ink)
    stats = manager.stats()
    legend = (
        f"dark: shared by A, B and C\n{stats['blocks_used']} used, {stats['blocks_free']} free\n"
        "block 0 takes the padding's writes"
    )
    axis.text(5.02, 0.4, legend, va="center", fontsize=8, color=theme.faint, linespacing=1.5)
    return figure


# ---- 8. invariance


def bit_differences() -> dict[str, Tensor]:
    """Return, for each backend, the distance between logits [40, vocab] computed alone and in a batch of eight.

    A distance of 1 means two neighbouring fp32 numbers.
    """
    config = v3_like("small", vocab_size=Tokenizer.byte_level().vocab_size, context=128)
    batch = torch.randint(config.vocab_size, (8, 40), generator=torch.Generator().manual_seed(0))
    distances = {}
    for ops in (TORCH, TORCH_INVARIANT):
        decoder = build(config, seed=0, ops=ops)
        with torch.no_grad():
            alone = decoder.logits(decoder(batch[:1]).hidden)[0]
            batched = decoder.logits(decoder(batch).hidden)[0]
        distances[ops.name] = (_ordered(alone) - _ordered(batched)).abs()
    return distances


def _ordered(x: Tensor) -> Tensor:
    """Map fp32 values to integers, so that neighbouring fp32 numbers differ by 1."""
    bits = x.view(torch.int32).long()
    return bits.where(bits >= 0, -(bits & 0x7FFFFFFF))


LEVELS = ((0, "the same bits"), (1, "1 to 7 steps apart"), (8, "8 or more"))


def invariance(theme: Theme) -> Figure:
    """Draw which logits change when seven other sequences are in the batch."""
    differences = bit_differences()

    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    colours = [theme.grid, theme.after, theme.off]
    for axis, (name, steps) in zip(axes, differences.items()):
        level = sum((steps >= least).long() for least, _ in LEVELS) - 1
        axis.imshow(level[:, :60], cmap=ListedColormap(colours), vmin=0, vmax=2, aspect="auto")
        differ = int((steps > 0).sum())
        axis.set_title(f"{name}: {differ:,} of {steps.numel():,} differ")
        axis.set_xlabel("the first 60 tokens of the vocabulary")
        axis.grid(visible=False)
    axes[0].set_ylabel("position")
    handles = [Patch(color=colour, label=label) for colour, (_, label) in zip(colours, LEVELS)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


PICTURES: dict[str, Callable[[Theme], Figure]] = {
    draw.__name__: draw for draw in (model, mla, moe, mtp, grpo, distillation, cache, invariance)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; all without any")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in chosen.names or PICTURES:
        file = chosen.out / f"tour-{name}.png"
        file.write_bytes(render_figure(PICTURES[name], LIGHT))
        print(f"{file}  {file.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
