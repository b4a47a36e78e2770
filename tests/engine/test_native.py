"""The native backend: its kernels against plain float64, its steps against the reference, and the same bits in every batch, on any number
of threads and on every instruction set."""

from __future__ import annotations

import random
from collections.abc import Callable
from ctypes import byref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled import finish, ids_and_logprobs
from schedules import make_pool
from test_same_bits import run_all
from torch import Tensor, nn
from trained import CONTEXT, TYPES, in_type, untrained

from rorqual.core.errors import ConfigError, NumericsError
from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.engine.native import build, library
from rorqual.engine.native.library import FORCED, VARIANTS, instruction_set, kernel
from rorqual.engine.native.native_backend import Native
from rorqual.engine.native.panels import PanelLinear
from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model import build as model_builder
from rorqual.model.adapter import LoRA
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.ffn.router import GroupedTopKConfig
from rorqual.ops.backends import REFERENCE
from rorqual.ops.rope import Rope, Yarn
from rorqual.ops.sampling import SamplingMetadata, SamplingSettings, sample

Force = Callable[[str], None]


def usable() -> tuple[str, ...]:
    best = instruction_set()
    assert best is not None, (
        "the kernels are not compiled, although tests need a compiler: python src/rorqual/engine/native/build.py"
    )
    return VARIANTS[VARIANTS.index(best) :]


# ---- linear maps


@settings(report_multiple_bugs=False)
@given(
    st.integers(1, 9), st.integers(1, 200), st.integers(1, 200), st.sampled_from([*TYPES.values()]), st.booleans(), st.integers()
)  # fmt: skip
def test_a_linear_map_is_a_chain_of_fused_additions(
    rows: int, width: int, out: int, dtype: torch.dtype, biased: bool, seed: int
) -> None:
    """Within the rounding of such a chain, and each row for itself."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    x, weight = (torch.randn(n, width, generator=generator) for n in (rows, out))
    bias = torch.randn(out, generator=generator) if biased else None
    weight = weight.to(dtype)
    made = PanelLinear(weight, bias)
    found, exact = made(x), x.double() @ weight.double().T + (0 if bias is None else bias.double())
    bound = (width + 2) * 2**-24 * (x.double().abs() @ weight.double().abs().T + (0 if bias is None else bias.abs()))
    assert ((found - exact).abs() <= bound + 1e-30).all()
    assert torch.equal(made.weight, weight)
    for row in range(rows):
        assert torch.equal(made(x[row : row + 1]), found[row : row + 1])


def test_a_wrong_order_of_the_sum_would_be_seen() -> None:
    """1 is lost beside 1e8 in the order of the inputs, and not in the other."""
    weight = torch.zeros(70, 40)
    weight[:, 0], weight[:, 1], weight[:, 39] = 1e8, 1.0, -1e8
    assert (PanelLinear(weight, None)(torch.ones(3, 40)) == 0).all()


# ---- whole steps


def engine(model: Decoder, tokenizer: Tokenizer, chat: ChatFormat, **options: Any) -> Engine:
    return Engine.of(model, tokenizer, chat, **{"backend": "native", "engine_cores": 1} | options)


def prompts(n: int = 5) -> list[Request]:
    """Prompts of one token to 300, with greedy and drawn replies."""
    rng = random.Random(1)
    lengths = [1, 64, 130, 300, 17][:n]
    how = ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "top_p": 0.8, "seed": 5})
    return [
        Request(
            prompt_ids=tuple(rng.randrange(40, 120) for _ in range(length)),
            params=SamplingParams(max_tokens=40, ignore_eos=True, prompt_logprobs=1, **how[number % 3]),
        )
        for number, length in enumerate(lengths)
    ]


def bits(engine: Engine, requests: list[Request]) -> list[Any]:
    return [
        (one.token_ids, one.logprobs, None if one.experts is None else one.experts.tolist(), one.prompt_logprobs)
        for samples in engine.generate(requests)
        for one in samples
    ]


@pytest.mark.parametrize("kind", ["mla", "gqa"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("pack", [False, True])
def test_a_step_is_the_references(
    kind: str, dtype: str, pack: bool, models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    """Each log-probability, also of the prompt, is that of a whole forward pass of the reference over the same tokens, in float32. In bf16 only
    the cached keys and values are rounded: torch's bf16 is off by 0.02 on the mean."""
    model = in_type(models[kind], dtype)
    wide = in_type(model, "fp32")
    wide.ops = REFERENCE
    requests = prompts()
    made = engine(model, tokenizer, chat, pack=pack, record_experts=True).generate(requests)
    for request, (completion,) in zip(requests, made, strict=True):
        assert request.prompt_ids is not None
        ids = [*request.prompt_ids, *completion.token_ids]
        assert len(completion.token_ids) == 40 and len(ids) <= CONTEXT
        with torch.no_grad():
            output = wide(torch.tensor([ids]))
            exact = wide.logits(output.hidden)[0].log_softmax(-1)
        given = len(request.prompt_ids)
        found = torch.tensor(list((completion.prompt_logprobs or [])[1:])) if given > 1 else torch.zeros(0)
        expected = exact[torch.arange(given - 1), torch.tensor(ids[1:given], dtype=torch.int64)]
        errors = [found - expected]
        if request.params.temperature in (0.0, 1.0):
            drawn = exact[torch.arange(given - 1, len(ids) - 1), torch.tensor(ids[given:])]
            errors.append(torch.tensor(completion.logprobs) - drawn)
        error = torch.cat(errors).abs()
        assert error.max() < 2e-4 if dtype == "fp32" else error.mean() < 0.01
        if request.params.temperature == 0 and dtype == "fp32":
            assert (torch.tensor(completion.logprobs) >= exact[given - 1 : -1].max(-1).values - 4e-4).all()
        if output.routing and dtype == "fp32":
            chosen = torch.stack([one.indices for one in output.routing], dim=1).sort(-1).values[: len(ids) - 1]
            assert completion.experts is not None
            assert torch.equal(completion.experts.long().sort(-1).values, chosen)


YARN = Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=32, mscale=0.7, mscale_all_dim=0.9))
ROPES = st.sampled_from([Rope(), Rope(theta=300.0), YARN])


@st.composite
def grouped_attention(draw: st.DrawFn) -> GQAConfig:
    kv_heads, repeat = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    flags = {name: draw(st.booleans()) for name in ("qk_norm", "attention_bias", "output_bias")}
    head_dim = 2 * draw(st.integers(1, 20))
    return GQAConfig(
        num_attention_heads=kv_heads * repeat, num_key_value_heads=kv_heads, head_dim=head_dim, rope=draw(ROPES), **flags
    )  # fmt: skip


@st.composite
def latent_attention(draw: st.DrawFn) -> MLAConfig:
    widths = {name: draw(st.integers(1, 40)) for name in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim")}
    return MLAConfig(
        num_attention_heads=draw(st.integers(1, 4)), q_lora_rank=draw(st.sampled_from([0, 7, 70])),
        qk_rope_head_dim=2 * draw(st.integers(1, 12)), rope=draw(ROPES), **widths,
    )  # fmt: skip


@st.composite
def mixture(draw: st.DrawFn) -> MoEConfig:
    groups, size = draw(st.sampled_from([1, 2, 4])), draw(st.integers(2, 4))
    kept = draw(st.integers(1, groups))
    router = GroupedTopKConfig(
        n_routed_experts=groups * size, num_experts_per_tok=draw(st.integers(1, min(5, kept * size))), n_group=groups,
        topk_group=kept, scoring_func=draw(st.sampled_from(["sigmoid", "softmax"])), norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])), group_score=draw(st.sampled_from(["top2", "max"])),
        score_bias=draw(st.booleans()),
    )  # fmt: skip
    return MoEConfig(
        router=router, moe_intermediate_size=draw(st.integers(1, 70)), n_shared_experts=draw(st.integers(0, 2))
    )


@st.composite
def models_with_kernels(draw: st.DrawFn) -> Decoder:
    """Any model with kernels, with random weights large enough that every part matters."""
    attention = draw(st.one_of(grouped_attention(), latent_attention()))
    dense = DenseConfig(intermediate_size=draw(st.integers(1, 150)))
    router = draw(mixture())
    config = ModelConfig(
        vocab_size=264, hidden_size=draw(st.integers(2, 100)), tie_word_embeddings=draw(st.booleans()),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-2])), max_position_embeddings=CONTEXT,
        stages=(Stage(layers=1, attention=attention, ffn=dense), Stage(layers=1, attention=attention, ffn=router)),
    )  # fmt: skip
    model = model_builder(config, seed=0)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    with torch.no_grad():
        for tensor in model.parameters():
            random = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + 0.3 * random if tensor.ndim == 1 else 1.5 * random / tensor.shape[-1] ** 0.5)
        for tensor in model.buffers():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


@settings(max_examples=40, report_multiple_bugs=False)
@given(models_with_kernels(), st.booleans())
def test_a_step_of_any_model_is_the_references(model: Decoder, pack: bool) -> None:
    """Up to the first token for which two experts are as good as each other."""
    tokenizer = Tokenizer.byte_level()
    requests = [
        Request(prompt_ids=tuple((37 * i + 11 * n) % 256 for i in range(n)), params=SamplingParams(max_tokens=1, prompt_logprobs=1))
        for n in (90, 3)
    ]  # fmt: skip
    made = engine(model, tokenizer, chat_format(tokenizer), pack=pack, record_experts=True).generate(requests)
    model.ops = REFERENCE
    for request, (completion,) in zip(requests, made, strict=True):
        assert (
            request.prompt_ids is not None and completion.experts is not None and completion.prompt_logprobs is not None
        )
        ids = torch.tensor(request.prompt_ids)
        with torch.no_grad():
            output = model(ids.unsqueeze(0))
            exact = model.logits(output.hidden)[0].log_softmax(-1)
        [routing] = output.routing
        same = (completion.experts[:, 0].long().sort(-1).values == routing.indices.sort(-1).values).all(-1)
        reach = len(ids) if same.all() else int(same.int().argmin())
        if reach < len(ids):
            biased = routing.scores + (
                0 if (bias := model.layers[1].ffn.router.e_score_correction_bias) is None else bias
            )
            gaps = (biased[reach, :, None] - biased[reach]).abs() + torch.eye(biased.shape[1])
            assert gaps.min() < 1e-4, "experts that are not as good as each other"
        found, expected = torch.tensor(completion.prompt_logprobs[1:]), exact[:-1].gather(1, ids[1:, None])[:, 0]
        scale = float(exact.abs().max())
        torch.testing.assert_close(found[: max(0, reach - 1)], expected[: max(0, reach - 1)], rtol=0, atol=1e-4 * scale)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_random_schedules_change_no_bit(kind: str, dtype: str, models: dict[str, Decoder], tmp_path: Path) -> None:
    run_all(make_pool(in_type(models[kind], dtype), seed=1, backend="native"), range(1), tmp_path)


@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_threads_and_instruction_sets_change_no_bit(
    kind: str, models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, force: Force
) -> None:
    found, names = [], usable()
    before = torch.get_num_threads()
    for name in names:
        force(name)
        for threads in (1, 3) if name == names[0] else (2,):
            torch.set_num_threads(threads)
            found.append(bits(engine(models[kind], tokenizer, chat, pack=False), prompts(3)))
    tasks = Path("/proc/self/task")
    running = len([*tasks.iterdir()])
    torch.set_num_threads(9)
    found.append(bits(engine(models[kind], tokenizer, chat, pack=False), prompts(3)))
    torch.set_num_threads(before)
    if kind == "mla":  # the threads stay
        assert len([*tasks.iterdir()]) >= running + 6
    assert len(found) >= 3 and all(one == found[0] for one in found)


def test_changed_weights_are_read(models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat) -> None:
    """As a trainer changes them, in place."""
    model = in_type(models["mla"], "fp32")
    trainers = engine(model, tokenizer, chat, pack=False)
    before = bits(trainers, prompts(2))
    for parameter in (
        model.layers[1].attention.kv_b_proj.weight,
        model.layers[2].ffn.experts.down_proj,
        model.norm.weight,
    ):
        with torch.no_grad():
            parameter.mul_(1.5)
        changed = bits(trainers, prompts(2))
        assert changed != before
        assert changed == bits(engine(model, tokenizer, chat, pack=False), prompts(2))
        before = changed


def test_a_nan_is_its_own_rows_alone(models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat) -> None:
    model = in_type(models["gqa"], "fp32")
    with torch.no_grad():
        model.embed_tokens.weight[200] = torch.nan
    good, bad = prompts(2)[0], Request(prompt_ids=(45, 200, 46), params=SamplingParams(max_tokens=5))
    good = replace(good, params=replace(good.params, prompt_logprobs=0))
    made = engine(model, tokenizer, chat, pack=False)
    alone = ids_and_logprobs(made.generate([good])[0][0])
    first, second = made.submit(good), made.submit(bad)
    ends = finish(made)
    assert ids_and_logprobs(ends[first]) == alone and not ends[first].error
    assert ends[second].error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_torchs_default_type_changes_nothing(
    dtype: torch.dtype, models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    expected = bits(engine(models["mla"], tokenizer, chat), prompts(2))
    torch.set_default_dtype(dtype)
    try:
        found = bits(engine(models["mla"], tokenizer, chat), prompts(2))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected


def test_many_samples_of_a_prompt_of_one_token(
    models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    """More rows are sampled in a step than it has tokens."""
    asked = Request(prompt_ids=(65,), params=SamplingParams(max_tokens=3, n=64, temperature=1.0, seed=1))
    (samples,) = engine(models["mla"], tokenizer, chat, slots=64).generate([asked])
    alone = engine(models["mla"], tokenizer, chat, slots=1).generate([asked])[0]
    assert [ids_and_logprobs(one) for one in samples] == [ids_and_logprobs(one) for one in alone]
    assert len({*(tuple(one.token_ids) for one in samples)}) > 8


def grouped_mixture(**router: Any) -> Decoder:
    moe = MoEConfig(
        router=GroupedTopKConfig(n_routed_experts=8, n_group=4, topk_group=2, **router), moe_intermediate_size=24
    )
    stage = Stage(layers=2, attention=GQAConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=16), ffn=moe)
    return model_builder(
        ModelConfig(vocab_size=264, hidden_size=64, stages=(stage,), max_position_embeddings=64), seed=1
    ).eval()


@pytest.mark.parametrize("k", [2, 4])
def test_excluded_experts_are_not_chosen_although_all_groups_have_one(
    k: int, tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    """Every group's score is minus infinity then, and no expert is chosen twice."""
    model = grouped_mixture(num_experts_per_tok=k)
    for block in model.layers:
        block.ffn.exclude_experts([1, 3, 5, 7])
    (completion,) = engine(model, tokenizer, chat, record_experts=True).generate([prompts(1)[0]])[0]
    assert completion.experts is not None
    assert all(len({*row}) == k for token in completion.experts.tolist() for row in token)


def test_a_nan_among_experts_is_an_error_of_its_row(tokenizer: Tokenizer, chat: ChatFormat) -> None:
    model = grouped_mixture(num_experts_per_tok=4)
    with torch.no_grad():
        model.embed_tokens.weight[200] = torch.nan
    with pytest.raises(NumericsError):
        engine(model, tokenizer, chat).generate(
            [Request(prompt_ids=(45, 200, 46), params=SamplingParams(max_tokens=5))]
        )


def test_a_packed_mixture_scores_texts(models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat) -> None:
    """Operation by operation, as the log-probabilities of a prompt are, but for rounding."""
    made, request = engine(models["mla"], tokenizer, chat), prompts(3)[2]
    assert request.prompt_ids is not None
    (completion,) = made.generate([request])[0]
    with torch.no_grad():
        model = made.scoring_model
        logprobs = model.logits(model(torch.tensor([request.prompt_ids])).hidden)[0].log_softmax(-1)
    found = logprobs[:-1].gather(1, torch.tensor(request.prompt_ids)[1:, None])[:, 0]
    torch.testing.assert_close(found, torch.tensor((completion.prompt_logprobs or [])[1:]), rtol=0, atol=2e-4)


# ---- sampling


@settings(report_multiple_bugs=False)
@given(st.integers(1, 5), st.integers(2, 3000), st.integers())
def test_a_token_is_drawn_with_its_probability(rows: int, vocab: int, seed: int) -> None:
    """The token is the one in whose interval of the cumulative probabilities the random number lies, as in the reference; the numbers here
    do not lie on a bound."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    logits = 4 * torch.randn(rows, vocab, generator=generator)
    logits[torch.rand(rows, vocab, generator=generator) < 0.2] = -torch.inf
    logits[:, 0] = 0.0
    params = [SamplingParams(temperature=t) for t in (0.0, 1.0, 0.5, 2.0, 1.0)[:rows]]
    chosen = SamplingSettings.of(params, "cpu")
    probability = (logits.double() / chosen.temperature).softmax(-1)
    cumulative = probability.cumsum(-1)
    picked = probability.float().multinomial(1, generator=generator).flatten()
    index = torch.arange(rows)
    uniform = (cumulative[index, picked] - probability[index, picked] / 2).numpy()
    metadata = SamplingMetadata(chosen, uniform)
    found, expected = Native().sample(logits.clone(), metadata), sample(logits.clone(), metadata)
    clear = (probability[index, picked] > 1e-5) | chosen.greedy.flatten()
    assert torch.equal(found.ids[clear], expected.ids[clear])
    torch.testing.assert_close(found.distribution, expected.distribution, rtol=0, atol=1e-5)
    assert torch.equal(found.logprobs, found.distribution.gather(1, found.ids.unsqueeze(1)).squeeze(1))
    assert (found.logprobs > -torch.inf).all()


def test_rounding_draws_no_token_that_is_practically_impossible() -> None:
    """A random number behind the last sum of a piece gives the piece's likeliest token."""
    logits = torch.randn(200, 1000, generator=torch.Generator().manual_seed(1))
    logits[:, -1] = -60.0
    chosen = SamplingSettings.of([SamplingParams(temperature=1.0)] * 200, "cpu")
    metadata = SamplingMetadata(chosen, torch.full((200,), 1 - 2e-8, dtype=torch.float64).numpy())
    assert (Native().sample(logits, metadata).logprobs > -20).all()


def test_greedy_is_the_largest_logit_although_log_probabilities_tie() -> None:
    logits = torch.zeros(1, 50_000)
    logits[0, 50], logits[0, 100] = 1.5, 1.5 + 2.4e-7
    metadata = SamplingMetadata(
        SamplingSettings.of([SamplingParams(temperature=0.0)], "cpu"), torch.zeros(1).double().numpy()
    )
    assert Native().sample(logits, metadata).ids.tolist() == [100]


# ---- refusals


class DoubledLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_module_of_another_class_is_refused_by_name(tokenizer: Tokenizer, chat: ChatFormat) -> None:
    """It may compute something else than the class that it is derived from."""
    model = untrained("gqa")
    model.layers[1].attention.o_proj = DoubledLinear(144, 96)
    with pytest.raises(ConfigError, match="it has no kernels for DoubledLinear"):
        engine(model, tokenizer, chat)
    adapted = untrained("gqa")
    LoRA(r=2).attach(adapted, seed=0)
    with pytest.raises(ConfigError, match="it has no kernels for LoRA"):
        engine(adapted, tokenizer, chat)


@pytest.mark.parametrize("kind", ["dsa", "nsa", "window"])
def test_a_kind_without_kernels_is_refused_by_name(kind: str, tokenizer: Tokenizer, chat: ChatFormat) -> None:
    model = untrained(kind)
    with pytest.raises(ConfigError, match=f"it has no kernels for {type(model.layers[0].attention).__name__}"):
        engine(model, tokenizer, chat)


def test_what_the_machine_lacks_is_said(
    tokenizer: Tokenizer, chat: ChatFormat, force: Force, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = untrained("gqa")
    with pytest.raises(ConfigError, match=r"it has no kernels for torch\.float16"):
        engine(in_type(model, "bf16").half(), tokenizer, chat)
    force("neon")
    with pytest.raises(ConfigError, match="no kernels for 'neon'") as refused:
        engine(model, tokenizer, chat)
    assert refused.value.where == FORCED
    monkeypatch.delenv(FORCED)
    monkeypatch.setattr(library, "FILE", Path("missing"))
    instruction_set.cache_clear()
    with pytest.raises(ConfigError, match="it has no kernels for this machine"):
        engine(model, tokenizer, chat)


def test_kernels_of_other_sources_are_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.library_file().name
    for source in build.SOURCES.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build.library_file().name == before
    (tmp_path / "linear.h").write_text("/* changed */\n", encoding="utf-8")
    assert build.library_file().name != before


def test_the_structs_have_the_sizes_of_the_kernels() -> None:
    x, y = torch.ones(1, 3), torch.empty(1, 64)
    made = PanelLinear(torch.tensor([[1.0, 2.0, 3.0]]), None)
    kernel("apply_linear")(byref(made.table()), x.data_ptr(), 1, y.data_ptr(), 64)
    assert float(y[0, 0]) == 6.0 and (y[0, 1:] == 0).all()
