"""What every attention, feed-forward, router and block kind must hold. Being registered is being tested: no example, no pass."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from fused import Fused
from outside import (
    CompressedConfig,
    IndexedConfig,
    NarrowCompressedConfig,
    NarrowIndexedConfig,
    NarrowKeysConfig,
    ShortcutConfig,
    SkippingConfig,
    StreamsConfig,
    TwoKeysConfig,
    ZeroComputationConfig,
)
from torch import Tensor
from transposed import Transposed

from rorqual.conformance.models import (
    BATCH,
    CHECKS,
    HIDDEN,
    LONG,
    SHORT,
    check_near,
    fed,
    hidden,
    model_of,
    some_tokens,
    tolerance,
)
from rorqual.conformance.training import LATENT
from rorqual.core.config import kinds, parse_config
from rorqual.engine.native.native_backend import QUANTIZED, Native
from rorqual.model import ModelConfig, Stage, account
from rorqual.model.attention import (
    AttentionConfig,
    BlockSelectionConfig,
    DSAConfig,
    GQAConfig,
    MLAConfig,
    NSAConfig,
    SlidingWindowConfig,
)
from rorqual.model.block import BlockConfig, PreNormConfig
from rorqual.model.ffn import DenseConfig, FFNConfig, MoEConfig
from rorqual.model.ffn.router import GroupedTopKConfig, RouterConfig, ZeroExpertsConfig
from rorqual.model.init import init_weights
from rorqual.ops.backends import REFERENCE, TORCH, TORCH_INVARIANT, Backend
from rorqual.ops.rope import Rope, Yarn
from rorqual.plan.memory import PRECISIONS, Layout, device_memory

YARN = Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=8, mscale=0.7, mscale_all_dim=0.7))
ATTENTION: list[AttentionConfig] = [
    GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, qk_norm=True),
    GQAConfig(num_attention_heads=2, num_key_value_heads=2, head_dim=6, attention_bias=True, rope=YARN),
    GQAConfig(num_attention_heads=3, num_key_value_heads=1, head_dim=8),
    MLAConfig(**LATENT),
    MLAConfig(num_attention_heads=3, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=6, rope=YARN),
    DSAConfig(**LATENT, index_n_heads=3, index_head_dim=10, index_topk=7, rope=YARN),
    DSAConfig(**LATENT, index_n_heads=3, index_head_dim=10, index_topk=9, index_top_p=0.9),
    DSAConfig(**LATENT, index_n_heads=3, index_head_dim=10, index_topk=7, index_dtype="float8_e4m3fn"),
    SlidingWindowConfig(**LATENT, window=5, sinks=2),
    BlockSelectionConfig(**LATENT, block_size=4, block_topk=2),
    NSAConfig(
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        compress_block=2,
        select_block=4,
        num_selected_blocks=3,
        num_local_blocks=1,
        window_size=3,
    ),
    NSAConfig(
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=6,
        compress_block=4,
        select_block=4,
        num_selected_blocks=2,
        num_initial_blocks=0,
        num_local_blocks=1,
        window_size=5,
        rope=YARN,
    ),
    TwoKeysConfig(),
    IndexedConfig(),
    CompressedConfig(),
    NarrowIndexedConfig(),
    NarrowCompressedConfig(),
    NarrowKeysConfig(),
]
ROUTERS: list[RouterConfig] = [
    GroupedTopKConfig(n_routed_experts=6, num_experts_per_tok=2),
    GroupedTopKConfig(n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2),
    GroupedTopKConfig(
        n_routed_experts=6,
        num_experts_per_tok=3,
        scoring_func="softmax",
        norm_topk_prob=False,
        score_bias=False,
        group_score="max",
    ),
    ZeroExpertsConfig(
        n_routed_experts=5, zero_expert_num=4, num_experts_per_tok=3, expected_experts=1.5, routed_scaling_factor=2.0
    ),
    ZeroComputationConfig(),
]
FFN: list[FFNConfig] = [
    DenseConfig(intermediate_size=20),
    *(MoEConfig(router=router, moe_intermediate_size=8, n_shared_experts=n) for n, router in enumerate(ROUTERS)),
    SkippingConfig(),
]
BLOCKS: list[BlockConfig] = [PreNormConfig(), ShortcutConfig(), StreamsConfig()]
STAGES = [
    *(Stage(layers=2, attention=a, ffn=FFN[i % len(FFN)]) for i, a in enumerate(ATTENTION)),
    *(Stage(layers=2, attention=ATTENTION[i], ffn=f) for i, f in enumerate(FFN)),
    *(Stage(layers=2, attention=ATTENTION[i], ffn=FFN[-2], block=block) for block in BLOCKS[1:] for i in (-1, 3)),
]


def label(config: AttentionConfig | FFNConfig | RouterConfig | Stage) -> str:
    if isinstance(config, Stage):
        return f"{config.block.kind}-{config.attention.kind}-{label(config.ffn)}"
    return f"{config.kind}-{config.router.kind}" if isinstance(config, MoEConfig) else config.kind


router_kinds = pytest.mark.parametrize("config", ROUTERS, ids=label)
every_stage = pytest.mark.parametrize("stage", STAGES, ids=label)
BACKENDS = [REFERENCE, TORCH, TORCH_INVARIANT, Native(), Transposed(), Fused()]
TRAINING = [ops for ops in BACKENDS if ops.supports(torch.device("cpu"), torch.float32, training=True) is None]
every_backend = pytest.mark.parametrize("ops", BACKENDS, ids=lambda ops: ops.name)


def kinds_of(base: type, examples: Iterable[object]) -> set[str]:
    """The kinds of the library and of the examples' files: other tests of the process, and experiments, register theirs."""
    files = {type(one).__module__ for one in examples}
    return {
        name
        for name, kind in kinds(base).items()
        if kind.__module__.startswith("rorqual.model.") or kind.__module__ in files
    }


def test_every_registered_kind_has_an_example() -> None:
    blocks = [stage.block for stage in STAGES]
    for base, examples in [
        (AttentionConfig, ATTENTION),
        (FFNConfig, FFN),
        (RouterConfig, ROUTERS),
        (BlockConfig, blocks),
    ]:
        assert kinds_of(base, examples) == {one.kind for one in examples}


@every_stage
@pytest.mark.parametrize("check", CHECKS)
def test_the_suite_for_users_passes(stage: Stage, check: str) -> None:
    CHECKS[check](stage)


@router_kinds
def test_a_router_builds_as_it_accounts_and_aims_at_all_of_the_load(config: RouterConfig) -> None:
    module, cost = config.build(HIDDEN), config.cost(HIDDEN)
    assert cost.params == cost.active == sum(t.numel() for t in module.state_dict().values())
    target = config.target_load()
    assert target.shape == (config.n_router_choices(),) and target.dtype == torch.float64
    assert float(target.sum()) == pytest.approx(1) and float(target.min()) > 0
    assert 0 < config.active_experts() <= config.experts_per_token() <= config.n_router_choices()
    assert not module.load_error((target * 36_000).round().long()).any()


@router_kinds
def test_a_router_brings_its_load_to_what_it_aims_at(config: RouterConfig) -> None:
    """Of the experts with weights, which its bias moves; a router without a bias stays as it is."""
    module = config.build(HIDDEN)
    init_weights(module, 0.3, 0)
    x = 0.5 + torch.randn(2000, HIDDEN, generator=torch.Generator().manual_seed(0))
    aimed = config.target_load()[: config.n_experts()]

    def miss() -> float:
        load = torch.bincount(module(x, TORCH, None).indices.flatten(), minlength=config.n_router_choices())
        module.balance(load, 0.01 if config.kind == "zero" else 0.002)  # `zero` moves in proportion to its error
        return float((load / load.sum() - config.target_load())[: config.n_experts()].abs().max() / aimed.max())

    first = miss()
    last = [miss() for _ in range(200)][-1]
    assert first > 0.2 and (last < 0.1 if any(True for _ in module.buffers()) else last == first)
    before = [buffer.clone() for buffer in module.buffers()]
    module.balance(torch.zeros(config.n_router_choices()), 0.01)
    assert all(map(torch.equal, before, module.buffers())), "no load, no change"


@every_stage
def test_a_model_builds_as_it_accounts(stage: Stage) -> None:
    model = model_of(stage, mtp=1)
    counted = account(model.config)
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    assert counted.mtp == sum(size for name, size in sizes.items() if name.startswith("mtp."))
    assert counted.total == sum(sizes.values()) - counted.mtp
    silent = (
        AttentionConfig.saved_activations,
        FFNConfig.saved_activations,
    )  # of a kind that does not say what it saves
    if not {type(part).saved_activations for part in (stage.attention, stage.ffn)} & {*silent}:
        memory = device_memory(model.config, Layout(zero=0), context=SHORT, precision=PRECISIONS["fp32"])
        assert memory.weights == 4 * (counted.total + counted.mtp)


@every_stage
def test_chosen_again_is_the_same_and_chosen_otherwise_is_not(stage: Stage) -> None:
    model, tokens = model_of(stage), some_tokens()
    routing = model(tokens).routing
    assert len(routing) == len(model.routing_ffns()) == sum(ffn.experts_per_token() > 0 for ffn in model.config.ffns)
    if not routing:
        return
    chosen = torch.stack([one.indices for one in routing], dim=1).unflatten(0, tokens.shape)
    check_near(hidden(model, tokens, replay=chosen), hidden(model, tokens))
    for router in range(len(routing)):  # each of them reads its own
        other = chosen.clone()
        other[:, :, router] = (other[:, :, router] + 1) % routing[router].scores.shape[-1]
        found = model(tokens, replay=other).routing[router].indices.unflatten(0, tokens.shape)
        assert torch.equal(found, other[:, :, router])
        assert not torch.allclose(hidden(model, tokens, replay=other), hidden(model, tokens), atol=1e-2)


@every_stage
def test_a_later_token_never_changes_an_earlier_output(stage: Stage) -> None:
    model, tokens = model_of(stage), some_tokens()
    before = hidden(model, tokens)
    for cut in (1, 5, SHORT - 1):
        changed = tokens.clone()
        changed[:, cut:] = (changed[:, cut:] + 7) % 50
        after = hidden(model, changed)
        check_near(after[:, :cut], before[:, :cut])
        assert not torch.allclose(after[:, cut:], before[:, cut:], atol=1e-2)


def test_a_compiled_block_computes_the_same() -> None:
    model, tokens = model_of(STAGES[3]), some_tokens()
    expected = hidden(model, tokens)
    for index, block in enumerate(model.layers):
        model.layers[index] = torch.compile(block, backend="eager")
    check_near(hidden(model, tokens), expected)


def test_every_registered_backend_is_tried() -> None:
    classes, names = [Backend], set[str]()
    while classes:
        one = classes.pop()
        classes += one.__subclasses__()
        names |= {one.name} if "name" in vars(one) and one.__module__.startswith("rorqual.") else set()
    rounding = {*QUANTIZED.values()}  # tests/engine/test_native_quantized.py holds it to a definition of its own
    assert (names - rounding) | {Transposed.name, Fused.name} == {ops.name for ops in BACKENDS}


@every_stage
@every_backend
def test_each_backend_decodes_as_the_reference_does(stage: Stage, ops: Backend) -> None:
    model, tokens = model_of(stage), some_tokens(length=LONG)
    model.ops = REFERENCE
    expected = hidden(model, tokens)
    model.ops = ops
    found = fed(model, tokens, (1, 97, 98, 99, LONG))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * tolerance(stage) * float(expected.abs().max()))


@every_stage
@pytest.mark.parametrize("ops", TRAINING, ids=lambda ops: ops.name)
def test_each_backend_trains_as_the_reference_does(stage: Stage, ops: Backend) -> None:
    """A training row of three documents: the values and every gradient."""
    model, tokens = model_of(stage), some_tokens(length=LONG)
    lengths = (70, LONG - 71, 1)
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(BATCH, LONG)
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(BATCH, LONG)
    weights = torch.randn(BATCH, LONG, HIDDEN, generator=torch.Generator().manual_seed(3))
    found: list[list[Tensor]] = []
    for one in (REFERENCE, ops):
        model.ops = one
        model.zero_grad()
        out = model(tokens, positions, segments=segments).hidden
        (out * weights).sum().backward()
        found.append([out, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for first, other in zip(*found):
        near_enough = 2e-4 * tolerance(stage) * float(first.detach().abs().max())
        torch.testing.assert_close(other, first, rtol=1e-3, atol=near_enough)


@every_stage
def test_gradients_reach_every_parameter(stage: Stage) -> None:
    model, tokens = model_of(stage, mtp=1), some_tokens()
    output = model(tokens)
    further = model.predict_with_mtp(output.hidden, tokens)
    weights = torch.Generator().manual_seed(0)
    terms = [model.logits(x) for x in (output.hidden, further[0].hidden)]
    sum((t * torch.randn(t.shape, generator=weights)).sum() for t in terms).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-6]
    assert silent == [name for name, _ in model.named_parameters() if ".index" in name]  # a choice has no gradient


@every_stage
def test_the_config_survives_being_written(stage: Stage) -> None:
    config = model_of(stage).config
    assert parse_config(ModelConfig, config.model_dump(mode="json"), where="test") == config
