"""The auxiliary loss and the load against slow second writings, and the whole experiment in small."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from small_run import run_small

from rorqual.core.records import RunDir
from rorqual.data.pack import TrainingSample, pack, pack_rows
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.lab.balance import (
    BalancingExperiment,
    SolutionBalanceExperiment,
    TextBalanceExperiment,
    excess_load,
    measure_loss_and_loads,
)
from rorqual.lab.balance_data import ORDER, SAMPLE, endless_text, text_windows
from rorqual.lab.job import load_value
from rorqual.model.decoder import Decoder
from rorqual.model.init import build
from rorqual.model.load.run_directory import load_run
from rorqual.recipes.models import v3_like
from rorqual.train.batch import TrainBatch
from rorqual.train.gradient import gradient, open_workers
from rorqual.train.objectives import AuxBalance, NextToken
from rorqual.train.run import Run


def model() -> Decoder:
    made = build(v3_like("tiny", vocab_size=BASE_VOCAB, context=64), seed=0)
    with torch.no_grad():
        for router in made.routing_ffns():
            router.router.gate.normal_(
                0.0, 1.0, generator=torch.Generator().manual_seed(1)
            )  # a router that prefers some experts
    return made


def documents() -> list[TrainingSample]:
    generator = torch.Generator().manual_seed(3)
    lengths = (9, 17, 5, 12)
    return [
        TrainingSample(torch.randint(BASE_VOCAB, (n,), generator=generator).tolist(), [False] * 2 + [True] * (n - 2))
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
    with open_workers(1) as pool:
        alone = gradient(net, [NextToken()], batch, parts=1, pool=pool).grads[router]
        update = gradient(net, [NextToken(), AuxBalance(coefficient=1.0)], batch, parts=1, pool=pool)
        assert (update.grads[router] - alone).abs().max() > 1e-6
        for _ in range(60):
            update = gradient(net, [NextToken(), AuxBalance(coefficient=1.0)], batch, parts=1, pool=pool)
            with torch.no_grad():
                parameter -= 2.0 * update.grads[router]
    assert excess_load([slow_load(net)]) < 0.7 * before


def test_a_batch_in_parts_is_refused() -> None:
    whole = SolutionBalanceExperiment().arm_run("aux", Path(), 0, 0.01).model_dump()
    Run.model_validate(whole)
    with pytest.raises(ValidationError, match="micro_batches=1"):
        Run.model_validate(whole | {"micro_batches": 2})


def test_load_and_loss_counted_again_from_outside() -> None:
    net = model()
    nats, counts = measure_loss_and_loads(net, documents())
    assert counts[0].tolist() == slow_load(net)
    total = 0.0
    for sample in documents():
        logits = net.logits(net(torch.tensor([sample.ids])).hidden)[0].log_softmax(-1).detach()
        total -= sum(float(logits[i, sample.ids[i + 1]]) for i in range(len(sample.ids) - 1) if sample.mask[i + 1])
    assert nats == pytest.approx(total, rel=1e-5)
    assert excess_load([[4, 2, 2, 0], [3, 3, 3, 3]]) == pytest.approx(0.5)  # (1 + 0) / 2


def test_the_endless_text_is_the_chain_that_it_says() -> None:
    """Every four letters of it stand in the sample, as often as they do there."""
    sample = (files("rorqual.data") / SAMPLE).read_text(encoding="ascii")
    ring = sample + sample[:ORDER]
    fours = Counter(ring[i : i + ORDER + 1] for i in range(len(sample)))
    text = endless_text(400_000, seed=1)
    assert len(text) == 400_000 and text == endless_text(400_000, seed=1) != endless_text(400_000, seed=2)
    tokens = Tokenizer.byte_level()
    windows = [*text_windows(tokens, text[:1000], row=16)]
    assert [token for window in windows for token in window.ids] == tokens.encode(text[:1000])[
        : 16 * len(windows)
    ] and len(windows) == 62
    lane = text[:40]  # texts that were drawn side by side meet at their seams only
    assert all(lane[i : i + ORDER + 1] in fours for i in range(len(lane) - ORDER))
    drawn = Counter(text[i : i + ORDER + 1] for i in range(len(text) - ORDER))
    for four, n in fours.most_common(20):
        assert drawn[four] / len(text) == pytest.approx(n / len(sample), rel=0.15)


@pytest.mark.parametrize("experiment", [TextBalanceExperiment(), SolutionBalanceExperiment()], ids=lambda one: one.name)
def test_the_whole_of_it_in_small(experiment: BalancingExperiment, tmp_path: Path) -> None:
    places = run_small(experiment, tmp_path, 0.003)
    finding = experiment.conclude(places)
    assert finding == experiment.conclude(places)
    measured = load_value(places[1], experiment.measure_job_name)
    assert measured["tokens"] >= 3000 and set(measured["load"]) == set(experiment.arms)
    assert {sum(layer) for layers in measured["load"].values() for layer in layers} == {2 * measured["tokens"]}
    biases = [
        any(
            bool(r.router.e_score_correction_bias.any())
            for r in load_run(RunDir(places[1] / experiment.arm_run_name(arm))).routing_ffns()
        )
        for arm in experiment.arms
    ]
    assert biases == [False, True, False]
    excess, loss = (finding.tables[at].rows for at in (0, 1))
    assert float(excess[3][1]) == pytest.approx(float(excess[0][1]) / 3, abs=1e-3) and len(loss) == 3
    mean = sum(measured["loss"]["none"]) / sum(measured["trained"])
    assert loss[0][2] == f"{mean:.4f}"
