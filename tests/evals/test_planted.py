"""A planted text stands where it is said to stand."""

from __future__ import annotations

from sparse_model import BYTES

from rorqual.data.passages import load_passage
from rorqual.evals.planted_passages import COPIED, CUE, copies, needles, plant
from rorqual.evals.sparse_attention_damage import Passage


def text(one: Passage, part: range | slice) -> str:
    at = slice(part.start, part.stop) if isinstance(part, range) else part
    return BYTES.decode(one.tokens[at])


def test_a_needle_stands_at_its_depth_and_the_passage_ends_with_question_and_answer() -> None:
    parts = needles(BYTES, 10)
    assert len({part.planted for part in parts}) == 10
    for depth in (0.0, 0.3, 1.0):
        passages = plant(BYTES, parts, 300, depth)
        for one, part in zip(passages, parts, strict=True):
            assert len(one.tokens) == 301 and one.queries.stop == one.scored.stop == 300
            key, value = text(one, one.sought).strip().rstrip(".").split("=")
            assert key.endswith("'s key") and value.isdigit() and len(value) == 4
            assert text(one, slice(one.queries.start, None)) == f"\nWhat is {key}? {key}={value}"
            assert [one.tokens[position + 1] for position in one.scored] == BYTES.encode(value)
            filler = 301 - part.total_tokens
            assert one.sought.start == round(depth * filler)
            before, after = text(one, slice(one.sought.start)), text(one, slice(one.sought.stop, one.queries.start))
            assert before + after in load_passage("prose") * 2 and len(before + after) == filler
    assert len({one.tokens[:20] for one in plant(BYTES, parts, 300, 0.5)}) == 10, (
        "each starts at another place of the filler"
    )


def test_a_copied_line_comes_twice_and_its_first_tokens_are_given() -> None:
    parts = copies(BYTES, 70)
    for one in plant(BYTES, parts, 200, 0.25):
        line = text(one, one.sought)
        assert len(one.sought) == COPIED and line.startswith("\n") and line[1:] in load_passage("names")
        assert text(one, slice(one.queries.start, None)) == line
        assert len(one.scored) == COPIED - CUE and one.scored.stop == 200
        assert text(one, slice(one.scored.start + 1, None)) == line[CUE:]
    assert len({part.planted for part in parts[:20]}) == 20
