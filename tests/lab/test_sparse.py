"""Random positions against other code, the adaptive budget, and the experiment in small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_run import run_small
from torch import Tensor

from rorqual.core.config import read_yaml
from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.lab import long_training
from rorqual.lab.job import JobCost, load_value
from rorqual.lab.long_scores import score_solutions, solutions
from rorqual.lab.long_training import DENSE, KINDS, TrainUntilLearned, dense_model, stage_run
from rorqual.lab.page import page_text
from rorqual.lab.random_selection import RandomSelection, RandomSelectionConfig
from rorqual.lab.sparse import (
    ARMS,
    BUDGETS,
    DSA,
    RUNS,
    SparseExperiment,
    load,
    matching_top_p,
    measure_job_name,
    with_selection,
)
from rorqual.model.attention import AttentionContext, DSAConfig, MLAConfig
from rorqual.model.init import build, init_weights
from rorqual.model.training_cache import PackedBatchCache
from rorqual.ops.backends import REFERENCE
from rorqual.tasks.find import load_task
from rorqual.train.run import Run
from rorqual.train.sources.worked import worked_sample

LENGTH, TOKENS, WIDTH = 256, 150, 64
MLA = {name: value for name, value in dense_model(LENGTH).attentions[0] if name != "kind"}


def attended(config: MLAConfig, visible: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The output and the selected positions of a module with fixed weights, or of dense attention to `visible` [queries, keys]."""
    module = config.build(WIDTH, 1e-6)
    init_weights(module, 0.3, seed=4)
    x = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(5))
    positions = torch.arange(TOKENS)[None]
    context = AttentionContext(
        positions, None if visible is None else visible[None, None], REFERENCE, wanted=("selected",)
    )
    cache = None
    if visible is None:
        cache = PackedBatchCache(positions, None, [config.cache_layout()], REFERENCE.attention).layer(0)
    return module(x, context, cache), next(iter(context.recorded.get("selected", [])), None)


def mask_of(selected: Tensor) -> Tensor:
    visible = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for query, rows in enumerate(selected.tolist()):
        visible[query, [row for row in rows if row >= 0]] = True
    return visible


@torch.no_grad()
def test_attention_is_that_of_a_dense_layer_which_sees_only_the_selected_positions() -> None:
    out, selected = attended(RandomSelectionConfig(**MLA, topk=20, seed=3))
    assert selected is not None
    expected, _ = attended(MLAConfig(**MLA), mask_of(selected))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    assert (expected - attended(MLAConfig(**MLA), causal)[0]).abs().max() > 0.01, "the selection matters"
    assert (mask_of(selected) & ~causal).sum() == 0
    assert mask_of(selected).sum(1).tolist() == [min(query + 1, 20) for query in range(TOKENS)]


def test_random_positions_depend_on_seed_layer_and_position_alone() -> None:
    def picks(own: Tensor, **options: int) -> Tensor:
        return RandomSelection(RandomSelectionConfig(**MLA, topk=16, **options), WIDTH, 1e-6).select(own, own, None)  # type: ignore[arg-type]

    own = torch.arange(400)
    base = picks(own)
    assert torch.equal(picks(own[:90]), base[:90]), "a longer text does not change them"
    assert torch.equal(picks(torch.tensor([7, 300, 7])), base[[7, 300, 7]])
    assert (base == own[:, None]).sum(1).tolist() == [1] * 400, "the query's own position, once"
    for options in ({"seed": 1}, {"layer": 1}):
        other = picks(own, **options)
        shared = [len({*a} & {*b}) for a, b in zip(base[200:].tolist(), other[200:].tolist(), strict=True)]
        assert sum(shared) / len(shared) < 4, "of 16 positions, chance and the own position share about 2"
    spread = (base[200:].float() / own[200:, None]).flatten()
    assert abs(float(spread.mean()) - 0.53) < 0.02, "uniform over the text before the query"


@torch.no_grad()
def test_the_adaptive_budget_selects_as_many_positions_on_average() -> None:
    dense = build(dense_model(LENGTH), seed=1).config
    attention = DSAConfig(**MLA, index_n_heads=2, index_head_dim=32, index_topk=48)
    sparse = dense.model_copy(update={"stages": (dense.stages[0].model_copy(update={"attention": attention}),)})
    chat = chat_format(Tokenizer.byte_level())
    task = load_task("long:needle", options={"length": LENGTH})
    samples = [worked_sample(problem, chat, think=True) for problem, _ in zip(task.problems("dev", 0), range(3))]
    capped = with_selection("adaptive", sparse, 24)
    assert {(a.index_topk, a.index_top_p) for a in capped.attentions if isinstance(a, DSAConfig)} == {(48, 1.0)}
    top_p = matching_top_p(build(capped, seed=1), samples, 24)
    assert 0 < top_p < 1
    picked = score_solutions(build(with_selection("adaptive", sparse, 24, top_p=top_p), seed=1), samples)["picked"]
    fixed = score_solutions(build(with_selection("dsa", sparse, 24), seed=1), samples)["picked"]
    assert picked == pytest.approx(fixed, rel=0.03)
    assert fixed == pytest.approx(sum(min(i + 1, 24) for s in samples for i in range(len(s))) / sum(map(len, samples)))


def test_every_arm_has_its_own_attention_at_each_budget() -> None:
    dense = dense_model(LENGTH)
    window, rand = (with_selection(arm, dense, 64, seed=9).attentions for arm in ("window", "random"))
    assert with_selection("dense", dense, 64).attentions == dense.attentions
    assert [(a.kind, a.window + a.sinks) for a in window] == [("window", 64)] * 3  # type: ignore[attr-defined]
    assert [(a.topk, a.seed, a.layer) for a in rand] == [(64, 9, 0), (64, 9, 1), (64, 9, 2)]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return run_small(SparseExperiment(LENGTH), tmp_path_factory.mktemp("lab"), 0.003)


def test_the_whole_of_it_in_small(places: dict[int, Path]) -> None:
    finding = SparseExperiment(LENGTH).conclude(places)
    assert finding.verdict == "open"
    picked = {
        arm: {d: part["needle"]["picked"] for d, part in load_value(places[1], measure_job_name(arm)).items()}
        for arm in ARMS
    }
    assert picked["dense"] == {"1": 0} and set(picked["dsa"]) == {"2", "4", "8"}
    for arm in ("dsa", "random"):
        assert LENGTH / 8 > picked[arm]["8"] > LENGTH / 10 and picked[arm]["2"] < LENGTH / 2
        assert picked[arm] == picked["dsa"], "every query sees as many positions"
    for divisor, most in picked["dsa"].items():
        assert picked["window"][divisor] == pytest.approx(most)
        assert picked["adaptive"][divisor] == pytest.approx(most, rel=0.1)
    cuts = [load_value(places[1], measure_job_name("adaptive"))[str(divisor)]["top_p"] for divisor in BUDGETS.values()]
    assert all(0 < cut <= 1 for cut in cuts) and "needle" in page_text(finding)
    stored = load_value(places[2], measure_job_name("adaptive"))["4"]["needle"]
    row = next(row for row in finding.tables[0].rows if row[0] == "indexer, adaptive budget, a quarter")
    assert row[5] == f"{100 * sum(stored['right']) / len(stored['right']):.1f}", "the second seed's needles"
    loss = {one.question: one for one in finding.contrasts}[
        "loss over that of dense attention, a quarter: dense, then window with sinks"
    ]
    assert SparseExperiment(LENGTH).runs_of("adaptive/4") == (f"{DSA}/sparse",)
    both = [load_value(places[1], measure_job_name(arm))[at] for arm, at in (("dense", "1"), ("window", "4"))]  # type: ignore[arg-type]
    means = [sum(sum(one[kind]["loss"][:2]) for kind in KINDS) for one in both]
    assert loss.by_seed[0] == pytest.approx((1.0, means[1] / means[0]))


def test_rivals_train_as_long_as_the_indexer_on_the_same_data(places: dict[int, Path]) -> None:
    runs = {name: read_yaml(Run, RunDir(places[1] / name).config_file)
            for name in (DENSE, RUNS["longer"], RUNS["window"], RUNS["random"], f"{DSA}/warmup", f"{DSA}/sparse")}  # fmt: skip
    warmup, trained = runs[f"{DSA}/warmup"], runs[f"{DSA}/sparse"]
    assert warmup.model == trained.model and {
        a.index_topk for a in trained.model.attentions if isinstance(a, DSAConfig)
    } == {64}
    for arm in ("longer", "window", "random"):
        run = runs[RUNS[arm]]  # type: ignore[index]
        assert run.steps == warmup.steps + trained.steps and run.source == trained.source == warmup.source
        assert run.optim == trained.optim and run.start.run == str(places[1] / DENSE)
        assert run.model == with_selection(arm, dense_model(LENGTH), 64, seed=1)  # type: ignore[arg-type]
    assert runs[DENSE].model == dense_model(LENGTH) and runs[DENSE].seed == 1
    assert runs[DENSE].source.options["length"] == LENGTH  # type: ignore[attr-defined]


def test_the_first_stage_begins_again_until_retrieval_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_training, "STARTS", 3)
    made: list[int] = []

    def job(place: Path) -> tuple[list[Path], JobCost]:
        def make() -> Run:
            made.append(1)
            return stage_run(0, place, 3, 0.004, LENGTH)

        cost = TrainUntilLearned(name="pairs", estimate=1, make=make).do_job(place)
        return sorted(place.glob("pairs*")), cost

    def losses(run: Path) -> list[float]:
        return [record["loss"] for record in RunDir(run).metrics()]

    monkeypatch.setattr(long_training, "LEARNED", 0.0)
    runs, cost = job(tmp_path / "never")
    assert [run.name for run in runs] == ["pairs", "pairs-0", "pairs-1"], "the last start stays, learned or not"
    configs = [read_yaml(Run, RunDir(run).config_file) for run in runs]
    assert [config.seed for config in configs] == [2003, 3, 1003] and len({config.steps for config in configs}) == 1
    records = [record for run in runs for record in RunDir(run).metrics()]
    assert cost.core_seconds == pytest.approx(sum(record["core_seconds"] for record in records))
    assert job(tmp_path / "never")[1] == cost, "a repeated job trains no further"
    last, first, second = (sum(losses(run)) / len(losses(run)) for run in runs)
    assert len({last, first, second}) == 3

    monkeypatch.setattr(long_training, "LEARNED", first + 1e-6)
    assert [run.name for run in job(tmp_path / "at once")[0]] == ["pairs"]
    assert losses(tmp_path / "at once" / "pairs") == losses(runs[1])
    trains = SparseExperiment(LENGTH).jobs(1, tmp_path, 0.1)
    assert [train.name for train in trains if isinstance(train, TrainUntilLearned)] == ["sparse-pairs"]


@torch.no_grad()
def test_an_arm_is_measured_on_held_out_problems_at_each_budget(places: dict[int, Path]) -> None:
    for arm, divisors in (("dense", ["1"]), ("longer", ["1"]), ("window", ["2", "4", "8"])):
        stored = load_value(places[2], measure_job_name(arm))  # type: ignore[arg-type]
        assert [*stored] == divisors
        for divisor, kinds in stored.items():
            model = load(arm, places[2], LENGTH // int(divisor), seed=2)  # type: ignore[arg-type]
            for kind in KINDS:
                problems = solutions(places[2], 2, kind, len(kinds[kind]["loss"]), "test", LENGTH)
                assert score_solutions(model, problems)["loss"] == pytest.approx(kinds[kind]["loss"], rel=1e-4)
