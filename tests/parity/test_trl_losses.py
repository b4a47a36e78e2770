"""Each option of GRPO that TRL has too gives TRL's loss and gradient on the same numbers (make_trl_golden.py wrote them)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rorqual.data.pack import TrainingSample, pack, pack_rows
from rorqual.model import Decoder
from rorqual.model.decoder import DecoderOutput
from rorqual.recipes.models import v3_like
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import GRPO
from rorqual.train.sources.shaping import overlong_penalty

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "trl_losses.json").read_text(encoding="utf-8"))
R1 = {"per": "sequence", "clip_high": 0.2}
OURS: dict[str, dict[str, Any]] = {
    "r1": R1,
    "token": {"per": "token", "clip_high": 0.2},
    "clip_higher": {"per": "token", "clip_high": 0.28},
    "bnpo": {},
    "dr_grpo": {"per": "constant", "max_tokens": GOLDEN["max_tokens"], "clip_high": 0.2},
    "gspo": {"per": "sequence", "importance_sampling_level": "sequence", "clip_low": 0.05, "clip_high": 0.08},
    "gspo_per_token": {"importance_sampling_level": "sequence", "clip_high": 0.2},
    "cispo": {"loss_type": "cispo", "clip_low": 1.0, "clip_high": 0.3},
    "cispo_sequence": {
        "loss_type": "cispo", "importance_sampling_level": "sequence", "clip_low": 1.0, "clip_high": 0.1,
    },
    "tis": {"clip_high": 0.2, "tis_cap": 1.15},
    "tis_gspo": R1 | {"importance_sampling_level": "sequence", "tis_cap": 1.15},
    "kl": R1 | {"beta": 0.3},
    "kl_dr_grpo": {"per": "constant", "max_tokens": GOLDEN["max_tokens"], "clip_high": 0.2, "beta": 0.3},
    "kl_unbiased": R1 | {"beta": 0.3, "kl": "unbiased"},
    "off_policy": R1 | {"off_policy_delta": 0.02},
    "v32": R1 | {"beta": 0.3, "kl": "unbiased", "off_policy_delta": 0.02},
    "mask_truncated": {"clip_high": 0.2},
}  # fmt: skip


def speller() -> Decoder:
    """A model of which the head is the identity: hidden states are logits."""
    vocab = len(GOLDEN["numbers"]["logits"][0][0])
    model = Decoder(v3_like("tiny", vocab_size=vocab, context=32).model_copy(update={"hidden_size": vocab}))
    with torch.no_grad():
        assert model.lm_head is not None
        model.lm_head.weight.copy_(torch.eye(vocab))
    return model


def arranged(answers: list[int], layout: str) -> tuple[TrainBatch, Tensor, list[tuple[int, int, int]]]:
    """The batch of these answers behind prompts of one token, its logits, and where each answer's predictions lie."""
    numbers = {name: torch.tensor(value) for name, value in GOLDEN["numbers"].items()}
    lengths = [GOLDEN["lengths"][i] for i in answers]
    samples = [
        TrainingSample([0, *numbers["targets"][i, :n].tolist()], [False] + [True] * n) for i, n in zip(answers, lengths)
    ]
    packed = pack(samples, 16) if layout == "packed" else pack_rows(samples, [[i] for i in range(len(samples))], 16)
    batch = TrainBatch.from_packed(packed.batch)
    shape = batch.tokens.shape
    fields = {name: torch.zeros(shape) for name in ("advantages", "lengths")}
    fields |= {name: torch.zeros(shape) for name in ("sampled_logprobs", "old_logprobs", "reference_logprobs")}
    logits = torch.zeros(*shape, numbers["logits"].shape[-1])
    places = []
    for i, n, (row, start, _) in zip(answers, lengths, packed.places):
        here = slice(start, start + n)
        for name, tensor in fields.items():
            value = n if name == "lengths" else numbers[name][i] if name == "advantages" else numbers[name][i, :n]
            tensor[row, here] = value
        logits[row, here] = numbers["logits"][i, :n]
        places.append((row, start, n))
    whole = TrainBatch(batch.tokens, batch.targets, batch.loss_mask, batch.segments, batch.positions, **fields)
    return whole, logits.requires_grad_(), places


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_loss_and_gradient(name: str, layout: str) -> None:
    case = GOLDEN["cases"][name]
    cut_off = case["settings"].get("truncated", [])
    answers = [i for i in range(len(GOLDEN["lengths"])) if i not in cut_off]
    batch, logits, places = arranged(answers, layout)
    objective = GRPO(**OURS[name])
    loss = objective.term(speller(), batch, DecoderOutput(logits, ())).sum / objective.weight(batch)
    assert float(loss.detach()) == pytest.approx(case["loss"], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    wanted = torch.tensor(case["gradient"])
    for i, (row, start, n) in zip(answers, places):
        assert torch.allclose(gradient[row, start : start + n], wanted[i, :n], rtol=0, atol=1e-6)
    assert wanted[cut_off].count_nonzero() == 0
    assert wanted.abs().max() > 1e-2, "a gradient that is nearly zero shows nothing"


def test_each_option_changes_what_it_is_off_in() -> None:
    """The numbers are such that every option matters: no two cases but the two of one meaning agree."""
    losses = {name: case["loss"] for name, case in GOLDEN["cases"].items() if name != "bnpo"}
    assert len({round(loss, 4) for loss in losses.values()}) == len(losses)


def test_overlong_punishment() -> None:
    wanted, buffer = GOLDEN["overlong"]["penalty"], GOLDEN["overlong"]["buffer"]
    ours = [overlong_penalty(n, GOLDEN["max_tokens"], buffer) for n in range(1, GOLDEN["max_tokens"] + 1)]
    assert ours == wanted and min(wanted) == -1.0 and wanted.count(0.0) == GOLDEN["max_tokens"] - buffer
