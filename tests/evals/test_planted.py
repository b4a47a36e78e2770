"""A planted text stands where it is said to stand, and what is missed of it equals a plain computation."""

from __future__ import annotations

import pytest
import torch
from sparse_model import BUDGET, BYTES, attention_inputs, dense_weights, model_of

from rorqual.data.passages import load_passage
from rorqual.evals.planted_passages import COPIED, CUE, PlantedPassage, copies, measure_planted, needles, plant

VOCAB = BYTES.vocab_size


def text(one: PlantedPassage, part: range | slice) -> str:
    at = slice(part.start, part.stop) if isinstance(part, range) else part
    return BYTES.decode(one.tokens[at])


def test_a_needle_stands_at_its_depth_and_the_passage_ends_with_question_and_answer() -> None:
    parts = needles(BYTES, 10)
    assert len({part.planted for part in parts}) == 10
    for depth in (0.0, 0.3, 1.0):
        passages = plant(BYTES, parts, 300, depth)
        for one, part in zip(passages, parts, strict=True):
            assert len(one.tokens) == 301 and one.queries.stop == one.answers.stop == 300
            key, value = text(one, one.planted).strip().rstrip(".").split("=")
            assert key.endswith("'s key") and value.isdigit() and len(value) == 4
            assert text(one, slice(one.queries.start, None)) == f"\nWhat is {key}? {key}={value}"
            assert [one.tokens[position + 1] for position in one.answers] == BYTES.encode(value)
            filler = 301 - part.total_tokens
            assert one.planted.start == round(depth * filler)
            before, after = text(one, slice(one.planted.start)), text(one, slice(one.planted.stop, one.queries.start))
            assert before + after in load_passage("prose") * 2 and len(before + after) == filler
    assert len({one.tokens[:20] for one in plant(BYTES, parts, 300, 0.5)}) == 10, (
        "each starts at another place of the filler"
    )


def test_a_copied_line_comes_twice_and_its_first_tokens_are_given() -> None:
    parts = copies(BYTES, 70)
    for one in plant(BYTES, parts, 200, 0.25):
        line = text(one, one.planted)
        assert len(one.planted) == COPIED and line.startswith("\n") and line[1:] in load_passage("names")
        assert text(one, slice(one.queries.start, None)) == line
        assert len(one.answers) == COPIED - CUE and one.answers.stop == 200
        assert text(one, slice(one.answers.start + 1, None)) == line[CUE:]
    assert len({part.planted for part in parts[:20]}) == 20


@torch.no_grad()
@pytest.mark.parametrize("build", [needles, copies])
def test_it_equals_a_plain_computation(build: type) -> None:
    model, dense = model_of(vocab=VOCAB), model_of(400, vocab=VOCAB)
    kind = build.__name__.replace("needles", "needle").replace("copies", "copy")
    passages = plant(BYTES, build(BYTES, 3), 120, 0.3)
    found = measure_planted(model, kind, passages, 0.3)  # type: ignore[arg-type]
    assert found is not None
    assert (found.kind, found.budget, found.length, found.depth, found.passages) == (kind, BUDGET, 120, 0.3, 3)
    attention, inside, right, loss = ([[], []] for _ in range(4))  # type: ignore[var-annotated]
    for one in passages:
        tokens = torch.tensor(one.tokens)
        inputs, _, selected = attention_inputs(model, tokens[:-1])
        for layer in range(2):
            weights, _ = dense_weights(model.layers[layer].attention, inputs[layer], model)  # type: ignore[arg-type]
            for query in one.queries:
                picked = {*selected[layer][query].tolist()} & {*one.planted}
                attention[layer].append(float(weights[:, query, list(one.planted)].mean(0).sum()))
                inside[layer].append(float(weights[:, query, sorted(picked)].mean(0).sum()))
        for which, other in enumerate((model, dense)):
            logits = other.logits(other(tokens[None, :-1]).hidden)[0].log_softmax(-1)
            for query in one.answers:
                right[which].append(int(logits[query].argmax()) == one.tokens[query + 1])
                loss[which].append(-float(logits[query, one.tokens[query + 1]]))
    mean = [[sum(values) / len(values) for values in pair] for pair in (attention, right, loss)]
    assert found.attention == pytest.approx(mean[0], rel=1e-4)
    assert found.inside == pytest.approx([sum(a) / sum(b) for a, b in zip(inside, attention, strict=True)], rel=1e-4)
    assert found.selected_share == pytest.approx(sum(map(sum, inside)) / sum(map(sum, attention)), rel=1e-4)
    assert found.answers == len(right[0]) and (found.right_sparse, found.right_dense) == pytest.approx(mean[1])
    assert (found.loss_sparse, found.loss_dense) == pytest.approx(mean[2], rel=1e-4)
    assert abs(found.loss_sparse - found.loss_dense) > 1e-4 and 0.001 < found.selected_share < 0.9
    starts = [one.queries.start - one.planted.start for one in passages]
    assert found.distance == round(sum(starts) / 3)
    assert found.to_json()["kept"] == found.selected_share
    wider = measure_planted(model, kind, passages, 0.3, 3 * BUDGET)  # type: ignore[arg-type]
    assert wider == measure_planted(model_of(3 * BUDGET, vocab=VOCAB), kind, passages, 0.3)  # type: ignore[arg-type]
