"""ESFT: the right experts, only they, and what that saves."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from little import documents, loud, packed, padded, records, relative, sft_run, tiny, update_of
from safetensors.torch import load_file
from test_lora import llama, logits, same, stopped_and_resumed

from rorqual.core.errors import ConfigError, NumericsError
from rorqual.core.records import RunDir
from rorqual.model import Decoder
from rorqual.model.adapter import ESFT, LoRA, read_adapter_info, trained_parameters
from rorqual.model.adapter.esft import expert_relevance, select_experts
from rorqual.model.adapter.files import ADAPTER_FILE
from rorqual.model.load.run_directory import load_run
from rorqual.ops.backends import REFERENCE, TORCH, Backend, backend
from rorqual.ops.moe import route
from rorqual.train.loop import fit
from rorqual.train.objectives import MultiToken, NextToken, Objective
from rorqual.train.run import Run, StartConfig
from rorqual.train.state import make_tokenizer, restore

OBJECTIVES: tuple[Objective, ...] = (NextToken(), MultiToken())
CHOSEN = ((1, 4, 9),)
EXPERTS = "layers.1.ffn.experts"


def specialised(model: Decoder, chosen: tuple[tuple[int, ...], ...] = CHOSEN) -> Decoder:
    ESFT().attach(model, seed=0, experts=chosen)
    return model


def esft_run(base: Path, steps: int = 5, **changes: Any) -> Run:
    tune = ESFT(p=changes.pop("p", 0.3), score=changes.pop("score", "token"))
    return sft_run(steps).model_copy(update={"start": StartConfig(run=str(base)), "tune": tune} | changes)


# ---- which experts


@pytest.mark.parametrize("score", ["gate", "token"])
def test_relevance_is_the_papers_mean_over_documents_of_a_mean_over_tokens(score: str) -> None:
    """Equations 7 and 8, document by document, token by token; padding counts nowhere."""
    generator = torch.Generator().manual_seed(3)
    document = torch.tensor([0, 0, 0, 0, 0, 1, 1, -1, -1, 2, 2, 2])
    routing = route(torch.randn(12, 6, generator=generator), torch.zeros(6), k=2, scale=2.5)
    slow = torch.zeros(6, dtype=torch.float64)
    for name in range(3):
        places = [i for i in range(12) if document[i] == name]
        for i in places:
            for expert, gate in zip(routing.indices[i].tolist(), routing.weights[i].tolist()):
                slow[expert] += (gate if score == "gate" else 1 / 2) / len(places)
    (found,) = expert_relevance([routing], document, score, 3)  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx(slow.tolist(), rel=1e-6)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=12), st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_the_chosen_reach_p_and_none_can_be_left_out(scores: list[float], p: float) -> None:
    (chosen,) = select_experts([torch.tensor(scores, dtype=torch.float64)], p)
    share = [score / sum(scores) for score in scores]
    total = sum(share[e] for e in chosen)
    assert total >= p - 1e-9
    assert total - min(share[e] for e in chosen) < p + 1e-9
    assert all(share[e] >= share[other] - 1e-9 for e in chosen for other in range(len(share)) if other not in chosen)


# ---- what is trained


def test_a_slice_has_the_gradient_that_it_has_in_full_training() -> None:
    batch = padded(documents(1))
    whole, some = loud(tiny()), specialised(loud(tiny()))
    full = dict(zip(trained_parameters(whole), update_of(whole, OBJECTIVES, batch).grads, strict=True))
    mine = dict(zip(trained_parameters(some), update_of(some, OBJECTIVES, batch, parts=2).grads, strict=True))
    assert set(mine) == {f"{EXPERTS}.{e}.{part}" for e in CHOSEN[0] for part in ("gate_up_proj", "down_proj")}
    assert any(float(g.abs().max()) > 0 for g in mine.values())
    for name, grad in mine.items():
        _, _, expert, part = name.rsplit(".", 3)
        expected = full[f"{EXPERTS}.{part}"][int(expert)]
        assert relative(expected, grad) <= 1e-5 if expected.any() else not grad.any(), name


# ---- a run


def test_a_run_keeps_the_slices_resumes_and_is_read_back(base: Path, tmp_path: Path) -> None:
    run, straight, resumed = esft_run(base), tmp_path / "straight", tmp_path / "resumed"
    state = fit(run, RunDir(straight), quiet=True, threads=2)
    stopped_and_resumed(run, resumed, 3)
    same(straight, resumed)
    info = read_adapter_info(RunDir(straight).checkpoint())
    assert info is not None and 1 <= len(info.experts[0]) < 16
    kept = load_file(RunDir(straight).checkpoint() / ADAPTER_FILE)
    assert set(kept) == {f"{EXPERTS}.{e}.{part}" for e in info.experts[0] for part in ("gate_up_proj", "down_proj")}
    assert torch.equal(logits(state.model), logits(load_run(RunDir(straight))))
    now, before = state.model.state_dict(), load_run(RunDir(base)).state_dict()
    assert all(torch.equal(before[name], now[name]) for name in before if not name.startswith(EXPERTS))
    count = sum(t.numel() for t in kept.values())
    last = records(straight)[-1]
    assert last["trained_parameters"] == count and last["optimizer_bytes"] == 4 * count
    assert last["optimizer_bytes"] < records(base)[-1]["optimizer_bytes"] / 4


@pytest.mark.parametrize("score", ["gate", "token"])
def test_more_of_the_relevance_is_more_experts(base: Path, tmp_path: Path, score: str) -> None:
    """They are found in the run's own data, whatever the number of threads."""
    found = []
    for p, threads in ((0.1, 1), (0.4, 1), (0.4, 2), (0.8, 1)):
        run = esft_run(base, p=p, score=score)
        adapter = restore(run, RunDir(tmp_path / "none"), make_tokenizer(run), threads=threads).adapter
        assert adapter is not None
        found.append(set(adapter.experts[0]))
    assert found[0] < found[1] == found[2] < found[3]


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="no routed experts") as error:
        ESFT().attach(loud(llama()), seed=0, experts=((0,),))
    assert "tune.kind=lora" in error.value.remedy


@torch.no_grad()
def turned_away(model: Decoder) -> Decoder:
    """No token chooses the experts that are trained."""
    for name, bias in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            bias[list(CHOSEN[0])] = -100.0
    return model


@pytest.mark.parametrize("ops", [REFERENCE, TORCH, backend("torch-invariant")], ids=lambda ops: ops.name)
def test_an_update_in_which_no_token_meets_a_trained_expert_is_legal(ops: Backend) -> None:
    model = turned_away(specialised(loud(tiny(modules=0))))
    LoRA(r=2, targets="o_proj").attach(model, seed=0)
    update = None
    with suppress(NumericsError):
        update = update_of(ops.bind(model), (NextToken(),), packed(documents(0)), parts=2)
    assert update is not None, "the step was refused"
    grads = dict(zip(trained_parameters(model), update.grads, strict=True))
    assert any(grad.any() for name, grad in grads.items() if "lora" in name)
    assert not any(grad.any() for name, grad in grads.items() if "experts" in name)
