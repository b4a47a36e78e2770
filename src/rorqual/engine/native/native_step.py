"""A whole engine step in one call: the model as a table of structs, and the step's arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import byref
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rorqual.core.errors import RorqualError
from rorqual.engine.native import library
from rorqual.engine.native.panels import PanelLinear
from rorqual.model.adapter.bank import AdaptedLinear, AdaptedPart
from rorqual.model.attention import RMSNorm
from rorqual.model.attention.gqa import GQA
from rorqual.model.attention.mla import MLA
from rorqual.model.block.block_kind import ResidualBoundary
from rorqual.model.block.pre_norm import PreNorm
from rorqual.model.decoder import Decoder
from rorqual.model.ffn.dense import Dense
from rorqual.model.ffn.moe import MoE
from rorqual.model.ffn.router.grouped_topk import GroupedTopK
from rorqual.ops.backends.reference import BackendLinear, Experts, PreparedExperts
from rorqual.ops.backends.step import Bools, Ints, StepInput, StepOutput
from rorqual.ops.layer import Layer
from rorqual.ops.rope import Rope
from rorqual.ops.sampling import SamplerOutput


def unsupported_part(model: nn.Module) -> str | None:
    """Return why the kernels cannot run a model, or None if they can."""
    assert isinstance(model, Decoder)
    parts = [part for name, part in model.named_modules() if name.partition(".")[0] != "mtp"]
    unknown = [type(part).__name__ for part in parts if type(part) not in KNOWN]
    if any(part.dtype is not None for kind in model.config.attentions for part in kind.cache_spec()):
        unknown.append("a cache of another type")
    return f"it has no kernels for {unknown[0]}" if unknown else None


KNOWN = (
    Decoder, nn.ModuleList, nn.Embedding, nn.Linear, BackendLinear, PanelLinear, RMSNorm, PreNorm, ResidualBoundary, GQA, MLA,
    Dense, MoE, GroupedTopK, Experts, PreparedExperts, AdaptedLinear,
)  # fmt: skip
"""The modules that the kernels know. A subclass may compute something else."""


def head_of(model: Decoder) -> Any:
    """Return the module whose weight is the head: `lm_head`, or the embedding if it is tied."""
    return model.embed_tokens if model.lm_head is None else model.lm_head


class NativeStep:
    """The `StepFunction` of the native backend.

    Maps that the engine has repacked (`PanelLinear`) are used as they are, and others are copied into panels. The engine compiles a new
    step whenever weights have changed.
    """

    def __init__(self, model: Decoder, threads: int, *, bits: int | None) -> None:
        self._model, self._threads, self._bits = model, threads, bits
        self._table: library.ModelTable | None = None
        self._kept: list[Any] = []  # what the table points to
        self._adapted = [part for part in model.modules() if isinstance(part, AdaptedLinear)][:1]
        self._pools: tuple[object, npt.NDArray[np.int64]] | None = None

    def __call__(self, step: StepInput) -> StepOutput:
        hidden, experts, logits = self._run(step, library.kernel("run_step"))
        if step.sampling is None:
            return StepOutput(hidden, experts, None)
        logits[:, self._model.config.vocab_size :] = -torch.inf
        return StepOutput(hidden, experts, self._model.ops.sample(logits, step.sampling))

    def decode(self, step: StepInput, stops: Ints, ignores_stops: Bools) -> StepOutput:
        assert step.sampling is not None
        rows, steps = step.ids.shape[1], step.positions.shape[1] // step.ids.shape[1]
        ids = torch.empty(steps * rows, dtype=torch.int64)
        logprobs = torch.empty(steps * rows, dtype=torch.float32)
        chosen, uniform = step.sampling.settings, np.ascontiguousarray(step.sampling.uniform)
        ignores = np.ascontiguousarray(ignores_stops)
        decoding = library.DecodingTable(
            steps, chosen.temperature.data_ptr(), chosen.greedy.data_ptr(), uniform.ctypes.data, stops.ctypes.data, len(stops),
            ignores.ctypes.data, ids.data_ptr(), logprobs.data_ptr(),
        )  # fmt: skip
        hidden, experts, logits = self._run(step, partial(library.kernel("decode"), byref(decoding)))
        done = rows * decoding.done
        sampled = SamplerOutput(ids[:done], logprobs[:done], logits)
        return StepOutput(hidden[:done], None if experts is None else experts[:done], sampled)

    def _run(self, step: StepInput, function: Callable[..., Any]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Call `function` with the table of the model, the arguments of a step and the number of threads. Return the hidden states,
        experts and logits. Raises RorqualError if `function` returns 1, because no memory is left."""
        self._table = table = self._table or self._build_table(step)
        metadata, model = step.cache.plan.metadata, self._model
        pools = self._pool_addresses(step.cache.pools)
        places, rows = step.positions.shape[1], len(step.last) if step.sampling is not None else 0
        hidden = torch.empty(places, model.config.hidden_size, dtype=torch.float32)
        experts = None
        if table.routers and step.record_experts:
            experts = torch.empty(places, table.routers, table.per_token, dtype=torch.int64)
        columns = library.pad_to_panels(model.config.vocab_size)
        logits = torch.empty(rows, columns, dtype=torch.float32)
        embeds = None if step.embeds is None else step.embeds[0].float().contiguous()
        blocks = np.ascontiguousarray(metadata.block_table)
        starts, slots = np.ascontiguousarray(metadata.query_start_loc), np.ascontiguousarray(metadata.slot_mapping)
        adapters = self._adapters(step.ids.shape[1])
        key = next(iter(step.cache.pools[0].values()))
        call = library.StepTable(
            step.ids.shape[1], len(metadata.seq_lens), rows, blocks.shape[1], library.TYPES[key.dtype],
            step.ids.data_ptr(), step.positions.data_ptr(), slots.ctypes.data, None if embeds is None else embeds.data_ptr(),
            starts.ctypes.data, blocks.ctypes.data, pools.ctypes.data, step.last.data_ptr(),
            hidden.data_ptr(), None if experts is None else experts.data_ptr(), logits.data_ptr(), logits.shape[1],
            None if adapters is None else adapters.ctypes.data,
        )  # fmt: skip
        if function(byref(table), byref(call), self._threads):
            raise RorqualError(
                "no memory is left for an engine step", remedy="Use fewer slots, or a smaller step_tokens."
            )
        return hidden, experts, logits

    def _adapters(self, tokens: int) -> Ints | None:
        """Return the stack and the place of the adapter of each token [tokens, 2], or -1 for none."""
        if not self._adapted or not self._adapted[0].step:
            return None
        found = np.full((tokens, 2), -1, np.int64)
        for adapted in self._adapted[0].step:
            stack = next(n for n, one in enumerate(self._adapted[0].stacks) if one is adapted.matrices)
            found[adapted.rows.numpy(), 0], found[adapted.rows.numpy(), 1] = stack, adapted.places.numpy()
        return found

    def _pool_addresses(self, pools: Sequence[Any]) -> npt.NDArray[np.int64]:
        if self._pools is None or self._pools[0] is not pools:
            parts = [[*layer.values()] for layer in pools]
            addresses = [[own[0].data_ptr(), own[-1].data_ptr()] for own in parts]
            self._pools = pools, np.array(addresses, np.int64)
        return self._pools[1]

    # ---- the table

    def _build_table(self, step: StepInput) -> library.ModelTable:
        model = self._model
        layers = (library.LayerTable * len(model.layers))()
        for index, block in enumerate(model.layers):
            assert isinstance(block, PreNorm)
            attention: Callable[[Any, StepInput], library.AttentionTable] = (
                self._grouped if isinstance(block.attention, GQA) else self._latent
            )
            layers[index] = library.LayerTable(
                self._floats(block.input_layernorm.weight),
                self._floats(block.post_attention_layernorm.weight),
                attention(block.attention, step),
                self._feedforward(block.ffn),
            )
        routers = [layer.ffn.per_token for layer in layers if layer.ffn.n_experts]
        self._kept.append(embedding := model.embed_tokens.weight.detach().contiguous())
        head = self._linear(head_of(model))
        self._kept.append(layers)
        return library.ModelTable(
            layers, len(layers), model.config.hidden_size, model.config.vocab_size, len(routers), max(routers, default=0),
            embedding.data_ptr(), library.TYPES[embedding.dtype], self._floats(model.norm.weight), head, model.norm.eps,
        )  # fmt: skip

    def _grouped(self, module: GQA, step: StepInput) -> library.AttentionTable:
        c = module.config
        norms = [None if norm is None else self._floats(norm.weight) for norm in (module.q_norm, module.k_norm)]
        return library.AttentionTable(
            0, c.num_attention_heads, c.num_key_value_heads, c.head_dim, self._shared_input(module), self._linear(module.o_proj),
            *norms, self._rope(c.rope, c.head_dim, step), scale=module.scale, eps=module.q_norm.eps if module.q_norm else 0.0,
        )  # fmt: skip

    def _latent(self, module: MLA, step: StepInput) -> library.AttentionTable:
        c = module.config
        up_keys, up_values = module.derived_tensors("up_maps")  # [heads, nope, rank] and [heads, rank, v]
        absorb, expand = (self._linears(matrix.transpose(1, 2)) for matrix in (up_keys, up_values))
        return library.AttentionTable(
            1, c.num_attention_heads, 1, c.qk_head_dim, self._shared_input(module), self._linear(module.o_proj),
            self._floats(module.q_a_layernorm.weight) if c.q_lora_rank else None, self._floats(module.kv_a_layernorm.weight),
            self._rope(c.rope, c.qk_rope_head_dim, step), c.q_lora_rank, c.kv_lora_rank, c.v_head_dim,
            self._linear(module.q_b_proj) if c.q_lora_rank else library.LinearTable(), absorb, expand,
            module.scale, module.kv_a_layernorm.eps,
        )  # fmt: skip

    def _feedforward(self, module: nn.Module) -> library.FeedforwardTable:
        if isinstance(module, Dense):
            return library.FeedforwardTable(self._dense(module))
        assert isinstance(module, MoE) and isinstance(module.router, GroupedTopK)
        c, router = module.router.config, module.router
        shared = library.DenseTable() if module.shared_experts is None else self._dense(module.shared_experts)
        bias, (gate,) = router.e_score_correction_bias, router.derived_tensors("wide_gate")
        return library.FeedforwardTable(
            shared, self._experts(module.experts), self._linear(PanelLinear(gate, None)),
            None if bias is None else self._floats(bias), c.n_routed_experts, c.num_experts_per_tok, c.n_group, c.topk_group,
            int(c.scoring_func == "softmax"), int(c.group_score == "max"), int(c.norm_topk_prob), c.routed_scaling_factor,
        )  # fmt: skip

    def _dense(self, module: Dense) -> library.DenseTable:
        down = self._linear(module.down_proj)
        return library.DenseTable(self._shared_input(module), down, down.in_)

    def _experts(self, module: nn.Module) -> Any:
        """Return the experts as an array of `library.DenseTable`."""
        if isinstance(module, PreparedExperts):
            maps = zip(module.gate_up, module.down, strict=True)
        else:
            assert isinstance(module, Experts)
            maps = zip(module.gate_up_proj, module.down_proj, strict=True)
        made = []
        for gate_up, down in maps:
            first, second = (
                self._linear(one if isinstance(one, PanelLinear) else self._panels(one)) for one in (gate_up, down)
            )
            made.append(library.DenseTable(first, second, second.in_))
        return self._array(library.DenseTable, made)

    def _linears(self, weights: Tensor) -> Any:
        """Return the maps with the matrices [maps, out, in] as an array."""
        return self._array(library.LinearTable, [self._linear(PanelLinear(weight, None)) for weight in weights])

    def _array(self, kind: Any, items: Sequence[Any]) -> Any:
        self._kept.append((kind * len(items))(*items))
        return self._kept[-1]

    def _rope(self, rope: Rope, dim: int, step: StepInput) -> library.RopeTable:
        cos, sin = step.cache.rope_cos_sin(rope, dim)  # type: ignore[attr-defined]
        return library.RopeTable(self._floats(cos), self._floats(sin), dim)

    def _shared_input(self, layer: Layer) -> library.LinearTable:
        """Return all maps of `layer.shared_input` as one."""
        if layer.fused is not None:
            return self._linear(layer.fused)
        maps, parts, start = [], list[AdaptedPart](), 0
        for name in (name for group in layer.shared_input for name in group):
            one = getattr(layer, name)
            if isinstance(one, AdaptedLinear):
                parts += [(name, start + first, start + stop) for name, first, stop in one.parts]
                one = one.wrapped
            maps.append(one)
            start += len(one.weight)
        weight = torch.cat([one.weight.detach() for one in maps])
        bias = None if maps[0].bias is None else torch.cat([one.bias.detach() for one in maps])
        return self._with_adapters(self._linear(self._panels(weight, bias)), parts)

    def _with_adapters(self, table: library.LinearTable, parts: Sequence[AdaptedPart]) -> library.LinearTable:
        """Add the adapters' matrices for the parts of a map."""
        made = []
        for matrices in self._adapted[0].stacks if parts else ():
            for name, first, stop in parts:
                down, up = matrices.get(name, (None, None))
                self._kept += [down, up]
                made.append(
                    library.LowRankTable()
                    if down is None or up is None
                    else library.LowRankTable(
                        down.data_ptr(), up.data_ptr(), down.shape[2], first, stop - first, library.TYPES[down.dtype]
                    )
                )
        if made:
            table.low_rank, table.parts = self._array(library.LowRankTable, made), len(parts)
        return table

    def _panels(self, weight: Tensor, bias: Tensor | None = None) -> PanelLinear:
        return PanelLinear(weight, bias, bits=self._bits)

    def _linear(self, module: nn.Module) -> library.LinearTable:
        if isinstance(module, AdaptedLinear):
            return self._with_adapters(self._linear(module.wrapped), module.parts)
        if not isinstance(module, PanelLinear):
            assert isinstance(module, (nn.Linear, nn.Embedding))
            module = self._panels(module.weight, getattr(module, "bias", None))
        self._kept.append(module)
        return module.table()

    def _floats(self, tensor: Tensor) -> int:
        """Return the address of an fp32 tensor, which is the tensor itself if it is fp32."""
        self._kept.append(tensor.detach().float().contiguous())
        return int(self._kept[-1].data_ptr())
