"""The table of `rorqual attention`."""

from __future__ import annotations

from rorqual.evals.missed import Misses


def missed_table(missed: Misses, model: str, data: str) -> str:
    """Return a text table of what sparse attention misses, one row per layer."""
    left_out = f"{missed.dense:,} further queries see all their positions and are left out"
    lines = [
        f"{model} on the last tenth of {data}: {missed.windows} windows of {missed.length} tokens, index_topk={missed.budget}.",
        f"{missed.queries:,} queries; {left_out}.",
        "",
        f"{'layer':>5}  {'mass':>6}  {'mass p1':>7}  {'recall':>6}  {'output':>6}  {'tied':>6}",
    ]
    lines += [
        f"{layer.layer:>5}  {layer.mass:>6.3f}  {layer.mass_p1:>7.3f}  {layer.recall:>6.3f}  {layer.difference:>6.3f}  {layer.tied:>6.1%}"
        for layer in missed.layers
    ]
    distances = missed.layers[0].distances
    lines += ["", f"{'distance':>13}  {'attention':>9}  {'selected':>8}  (mean of all layers)"]
    for index, part in enumerate(distances):
        parts = [layer.distances[index] for layer in missed.layers if index < len(layer.distances)]
        share = sum(p.share for p in parts) / len(missed.layers)
        inside = sum(p.share * p.inside for p in parts) / sum(p.share for p in parts)
        last = min(part.last, missed.length - 1)
        name = f"{part.first:,}" if part.first == last else f"{part.first:,}-{last:,}"
        lines.append(f"{name:>13}  {share:>9.1%}  {inside:>8.1%}")
    lines += [
        "",
        f"next token: KL(dense || sparse) {missed.kl:.4f} nats, the most likely token changes for {missed.flips:.1%} of queries;",
        f"            loss {missed.loss_sparse:.4f} nats with sparse attention, {missed.loss_dense:.4f} with dense attention",
        "",
        "mass: share of dense attention on selected positions (p1: first percentile over queries)",
        f"recall: share of the {missed.budget} positions with the largest dense weights that are selected",
        "output: |sparse - dense| / |dense|. tied: selected positions whose score equals the best that is not selected",
    ]
    return "\n".join(lines)
