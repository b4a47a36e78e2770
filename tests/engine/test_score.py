"""What a model says of given tokens is what it said while it drew them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rorqual.core.errors import DataError
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.engine.score import score
from rorqual.model import Decoder
from rorqual.model.init import build
from rorqual.recipes.models import student_like, v3_like

TEACHER = v3_like("tiny", vocab_size=BASE_VOCAB, context=64)
Pair = tuple[tuple[int, ...], list[int]]


@pytest.fixture(scope="module", params=["experts", "dense"])
def model(request: pytest.FixtureRequest) -> Decoder:
    """Weights large enough that one place's distribution is not another's."""
    made = build(TEACHER if request.param == "experts" else student_like(TEACHER), seed=1)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if tensor.dim() > 1 and name != "embed_tokens.weight":
                tensor.mul_(4.0)
        tokens = torch.randint(BASE_VOCAB, (4, 24), generator=torch.Generator().manual_seed(0))
        made.norm.weight.mul_(2.0 / made.logits(made(tokens).hidden).std())
    return made


@pytest.fixture(scope="module")
def drawn(model: Decoder) -> tuple[list[Pair], list[list[float]]]:
    tokenizer = Tokenizer.byte_level()
    engine = Engine.of(model, tokenizer, chat_format(tokenizer))
    prompts = [tuple(range(40, 40 + n)) for n in (1, 5, 11)]
    requests = [
        Request(prompt_ids=prompt, params=SamplingParams(max_tokens=9 + i, temperature=1.0, seed=i, n=3))
        for i, prompt in enumerate(prompts)
    ]
    samples = [one for group in engine.generate(requests) for one in group]
    return [(s.prompt_ids, s.token_ids) for s in samples], [s.logprobs for s in samples]


def test_it_agrees_with_the_engine_that_drew_them(model: Decoder, drawn: tuple[list[Pair], list[list[float]]]) -> None:
    pairs, logprobs = drawn
    for (_, reply), said, (ids, found) in zip(pairs, logprobs, score(model, pairs, BASE_VOCAB), strict=True):
        assert ids.shape == found.shape == (len(reply), BASE_VOCAB)
        assert ids.dtype == np.int32 and found.dtype == np.float32
        ours = [float(row[list(its).index(token)]) for token, its, row in zip(reply, ids, found)]
        assert ours == pytest.approx(said, abs=1e-4)
        assert np.exp(found.astype(np.float64)).sum(-1) == pytest.approx(1.0, abs=1e-5)


def test_it_is_each_samples_own_distribution_however_it_is_packed(
    model: Decoder, drawn: tuple[list[Pair], list[list[float]]]
) -> None:
    pairs, _ = drawn
    for (prompt, reply), (ids, found) in zip(pairs, score(model, pairs, 5), strict=True):
        whole = torch.tensor([[*prompt, *reply]])
        with torch.no_grad():
            logits = model.logits(model(whole).hidden)[0, len(prompt) - 1 : -1].double()
        top = logits.log_softmax(-1).topk(5)
        assert found == pytest.approx(top.values.numpy(), abs=1e-4)
        assert (ids == top.indices.numpy()).mean() > 0.99  # two that are as likely may change places


@pytest.mark.parametrize(("pair", "k", "says"), [
    (((1,), [2]), BASE_VOCAB + 1, "vocabulary of 263"), (((1,), [2]), 0, "vocabulary of 263"),
    (((), [2]), 1, "prompt of 0"), (((1,), []), 1, "reply of 0"), (((1,) * 60, [2] * 5), 1, "context of 64"),
])  # fmt: skip
def test_what_it_cannot_score_is_refused(model: Decoder, pair: Pair, k: int, says: str) -> None:
    with pytest.raises(DataError, match=says):
        score(model, [pair], k)
    score(model, [((1,) * 60, [2] * 4)], BASE_VOCAB)
    assert score(model, [], 1) == []
