"""The auxiliary loss and the load against slow second writings, and the whole experiment in small."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.pack import Sample, pack, pack_rows
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.lab.balance import BalanceExperiment, BalanceWorked, Balancing, read
from rorqual.lab.balance_data import ORDER, SAMPLE, endless_text, entropy, text_blocks, worked_blocks
from rorqual.lab.balance_report import ARMS, Arm, decide, excess_load, loss_contrast, third_contrast
from rorqual.lab.job import value
from rorqual.lab.page import page_text
from rorqual.model.decoder import Decoder
from rorqual.model.init import build
from rorqual.model.load.run import load_run
from rorqual.recipes.models import v3_like
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import AuxBalance, NextToken
from rorqual.train.run import Run
from rorqual.train.workers import gradient, workers


def model() -> Decoder:
    made = build(v3_like("tiny", vocab_size=BASE_VOCAB, context=64), seed=0)
    with torch.no_grad():
        for router in made.routers():
            router.router.gate.normal_(
                0.0, 1.0, generator=torch.Generator().manual_seed(1)
            )  # a router that prefers some experts
    return made


def documents() -> list[Sample]:
    generator = torch.Generator().manual_seed(3)
    lengths = (9, 17, 5, 12)
    return [
        Sample(torch.randint(BASE_VOCAB, (n,), generator=generator).tolist(), [False] * 2 + [True] * (n - 2))
        for n in lengths
    ]


def packed(row: int = 40) -> TrainBatch:
    return TrainBatch.from_packed(pack(documents(), row).batch)


def slow_load(net: Decoder) -> list[int]:
    """Document by document, token by token."""
    load = [0] * 16
    for sample in documents():
        for experts in net(torch.tensor([sample.ids])).routing[0].indices.tolist():
            for expert in experts:
                load[expert] += 1
    return load


def test_the_auxiliary_loss_is_that_of_the_papers() -> None:
    """alpha E sum_i f_i P_i, written with loops over tokens (Switch, eq. 4-6, for k choices and normalised sigmoids)."""
    net = model()
    chosen, affinity, tokens = [0.0] * 16, [0.0] * 16, 0
    for sample in documents():
        routing = net(torch.tensor([sample.ids])).routing[0]
        for scores, experts in zip(routing.scores.tolist(), routing.indices.tolist()):
            tokens += 1
            for expert in experts:
                chosen[expert] += 1 / len(experts)
            for expert, score in enumerate(scores):
                affinity[expert] += score / sum(scores)
    slow = 16 * sum(f / tokens * p / tokens for f, p in zip(chosen, affinity))
    assert slow > 1.05, "a router with preferences costs more than an even one"
    for batch in (packed(), TrainBatch.from_packed(pack_rows(documents(), [[i] for i in range(4)], 40).batch)):
        term = AuxBalance().term(net, batch, net(batch.tokens, batch.positions, segments=batch.segments))
        assert float(term.sum.detach()) / AuxBalance().weight(batch) == pytest.approx(slow, rel=1e-5)


def test_the_router_feels_it_and_its_load_evens() -> None:
    net, batch = model(), packed()
    names = [name for name, _ in net.named_parameters()]
    router = names.index("layers.1.ffn.router.gate")
    parameter = dict(net.named_parameters())["layers.1.ffn.router.gate"]
    before = excess_load([slow_load(net)])
    with workers(1) as pool:
        alone = gradient(net, [NextToken()], batch, parts=1, pool=pool).grads[router]
        update = gradient(net, [NextToken(), AuxBalance(coefficient=1.0)], batch, parts=1, pool=pool)
        assert (update.grads[router] - alone).abs().max() > 1e-6
        for _ in range(60):
            update = gradient(net, [NextToken(), AuxBalance(coefficient=1.0)], batch, parts=1, pool=pool)
            with torch.no_grad():
                parameter -= 2.0 * update.grads[router]
    assert excess_load([slow_load(net)]) < 0.7 * before


def test_a_batch_in_parts_is_refused() -> None:
    whole = BalanceWorked().arm("aux", Path(), 0, 0.01).model_dump()
    Run.model_validate(whole)
    with pytest.raises(ValidationError, match="micro_batches=1"):
        Run.model_validate(whole | {"micro_batches": 2})


def test_load_and_loss_counted_again_from_outside() -> None:
    net, batch = model(), packed()
    nats, counts = read(net, batch)
    assert counts[0].tolist() == slow_load(net)
    total = 0.0
    for sample in documents():
        logits = net.logits(net(torch.tensor([sample.ids])).hidden)[0].log_softmax(-1).detach()
        total -= sum(float(logits[i, sample.ids[i + 1]]) for i in range(len(sample.ids) - 1) if sample.mask[i + 1])
    assert nats == pytest.approx(total, rel=1e-5)
    assert excess_load([[4, 2, 2, 0], [3, 3, 3, 3]]) == pytest.approx(0.5)  # (1 + 0) / 2


def test_held_out_problems_are_of_the_test_split_and_end() -> None:
    chat = chat_format(Tokenizer.byte_level())
    blocks = list(worked_blocks(chat, seed=5, tokens=6000, rows=32, problems=60))
    total = sum(block.n_tokens for block in blocks)
    assert 6000 <= total < 6000 + 32 * 128
    again = list(worked_blocks(chat, seed=5, tokens=6000, rows=32, problems=60))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(blocks, again, strict=True))
    assert not torch.equal(blocks[0].tokens, next(worked_blocks(chat, seed=6, tokens=100, rows=32, problems=60)).tokens)


def found(bias: float, none: float = 1.0, aux: float = 1.0) -> list[dict[str, object]]:
    """Five seeds of two blocks, 10 trained tokens each, a little apart."""
    return [
        {
            "trained": [10, 10],
            "loss": {"none": [none * s, none * s], "aux": [aux * s, aux * s], "bias": [bias * s, bias * s]},
        }
        for s in (1.0, 1.1, 1.2, 1.3, 1.4)
    ]


def verdict(loads: Mapping[Arm, list[float]], bias: float, seeds: int = 5) -> str:
    cut = {arm: values[:seeds] for arm, values in loads.items()}
    return decide(third_contrast(cut), {arm: loss_contrast(arm, found(bias)[:seeds]) for arm in ("none", "aux")})


def test_the_verdict_is_a_rule() -> None:
    even: dict[Arm, list[float]] = {"none": [1.0] * 5, "aux": [0.5] * 5, "bias": [0.2, 0.21, 0.2, 0.19, 0.2]}
    uneven = even | {"bias": [0.5, 0.51, 0.5, 0.49, 0.5]}
    once = even | {"bias": [0.3, 0.2, 0.4, 0.2, 0.2]}
    assert verdict(even, bias=1.004) == "holds"
    assert verdict(even, bias=1.01) == "does not hold"
    assert verdict(uneven, bias=1.0) == "does not hold"
    assert verdict(once, bias=1.0) == "open"
    assert loss_contrast("none", found(1.004)).difference == pytest.approx(0.004)
    assert loss_contrast("none", found(1.004)).confidence == 0.99


@pytest.mark.parametrize("seeds", [1, 3, 4])
def test_fewer_than_five_seeds_are_open_however_clear(seeds: int) -> None:
    clear: dict[Arm, list[float]] = {"none": [1.0] * 5, "aux": [0.5] * 5, "bias": [0.01] * 5}
    assert verdict(clear, bias=0.9, seeds=seeds) == "open" and verdict(clear, bias=0.9) == "holds"


def test_a_loss_that_is_not_surely_below_half_a_percent_is_open() -> None:
    """Student's t of five seeds reaches beyond the bootstrap: 4.604 s / sqrt(5)."""
    clear: dict[Arm, list[float]] = {"none": [1.0] * 5, "aux": [0.5] * 5, "bias": [0.01] * 5}
    ones = [found(1 + d)[0] for d in (-0.004, -0.002, 0.0, 0.002, 0.004)]
    contrast = loss_contrast("none", ones)
    assert contrast.high < 0.005 < contrast.ends.high
    assert contrast.ends.high == pytest.approx(4.604 * 0.00316228 / 5**0.5, rel=1e-3)
    assert decide(third_contrast(clear), {"none": contrast}) == "open"


@pytest.mark.parametrize("experiment", [BalanceExperiment(), BalanceWorked()], ids=lambda one: one.name)
def test_the_arms_differ_in_what_evens_and_in_nothing_else(experiment: Balancing, tmp_path: Path) -> None:
    runs = {arm: experiment.arm(arm, tmp_path, 7, 0.01) for arm in ARMS}
    plain = {
        arm: run.model_copy(update={"balance": runs["none"].balance, "objectives": ()}) for arm, run in runs.items()
    }
    assert plain["none"] == plain["bias"] == plain["aux"]
    assert [run.balance.gamma > 0 for run in runs.values()] == [False, True, False]
    assert runs["none"].objectives == runs["bias"].objectives == (NextToken(),)
    assert runs["aux"].objectives[0] == NextToken() and isinstance(runs["aux"].objectives[1], AuxBalance)


def test_the_endless_text_is_the_chain_that_it_says() -> None:
    """Every four letters of it stand in the sample, as often as they do there; its entropy by a dictionary of counts."""
    sample = (files("rorqual.data") / SAMPLE).read_text(encoding="ascii")
    ring = sample + sample[:ORDER]
    fours = Counter(ring[i : i + ORDER + 1] for i in range(len(sample)))
    threes = Counter(ring[i : i + ORDER] for i in range(len(sample)))
    slow = -sum(n / len(sample) * math.log(n / threes[four[:ORDER]]) for four, n in fours.items())
    assert entropy() == pytest.approx(slow)
    text = endless_text(400_000, seed=1)
    assert len(text) == 400_000 and text == endless_text(400_000, seed=1) != endless_text(400_000, seed=2)
    lane = text[:40]  # texts that were drawn side by side meet at their seams only
    assert all(lane[i : i + ORDER + 1] in fours for i in range(len(lane) - ORDER))
    drawn = Counter(text[i : i + ORDER + 1] for i in range(len(text) - ORDER))
    for four, n in fours.most_common(20):
        assert drawn[four] / len(text) == pytest.approx(n / len(sample), rel=0.15)


def test_windows_of_a_text_predict_the_next_token() -> None:
    tokens = Tokenizer.byte_level()
    text = endless_text(20_000, seed=3)
    ids = tokens.encode(text)
    blocks = list(text_blocks(tokens, text, row=16, rows=8))
    assert torch.cat([block.tokens.flatten() for block in blocks]).tolist() == ids[: len(blocks) * 128]
    assert torch.cat([block.targets.flatten() for block in blocks]).tolist() == ids[1 : len(blocks) * 128 + 1]
    assert len(blocks) == (len(ids) - 1) // 128


@pytest.mark.parametrize("experiment", [BalanceExperiment(), BalanceWorked()], ids=lambda one: one.name)
def test_the_whole_of_it_in_small(experiment: Balancing, tmp_path: Path) -> None:
    share = 0.003
    places = {seed: tmp_path / f"seed-{seed}" for seed in (1, 2)}
    for seed, place in places.items():
        for job in experiment.jobs(seed, place, share):
            job.finish(place, share)
    finding = experiment.conclude(places)
    assert finding == experiment.conclude(places)
    measured = value(places[1], experiment.measured)
    assert measured["tokens"] >= 3000 and set(measured["load"]) == set(ARMS)
    assert {sum(layer) for layers in measured["load"].values() for layer in layers} == {2 * measured["tokens"]}
    biases = [
        any(
            bool(r.router.e_score_correction_bias.any())
            for r in load_run(RunDir(places[1] / experiment.folder(arm))).routers()
        )
        for arm in ARMS
    ]
    assert biases == [False, True, False]
    assert "most loaded expert" in page_text(finding)
