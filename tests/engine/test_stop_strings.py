"""A stop string ends a reply wherever its tokens are cut."""

from __future__ import annotations

from itertools import combinations

import pytest

from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Request, SamplingParams
from rorqual.engine.processor import RequestProcessor

STOP = "##E\u00e9"


def splits(ids: list[int]) -> list[list[list[int]]]:
    """Every way to cut a list."""
    cuts = [c for n in range(len(ids)) for c in combinations(range(1, len(ids)), n)]
    return [[ids[a:b] for a, b in zip((0, *cut), (*cut, len(ids)))] for cut in cuts]


@pytest.mark.parametrize("stops", [(STOP,), ("never", STOP), (STOP, "zz")])
def test_a_stop_string_stops_however_its_tokens_split_it(
    tokenizer: Tokenizer, chat: ChatFormat, stops: tuple[str, ...]
) -> None:
    """Bytes come one by one or several in a step; it stops at the last of them and not before, also far into a reply."""
    desk = RequestProcessor(tokenizer.vocab_size, 8, 4096, 4096, tokenizer, chat, reuse=False)
    request = Request(
        params=SamplingParams(max_tokens=900, stop=stops), prompt_ids=tuple(tokenizer.encode("hi " + STOP))
    )
    job = desk.validate_request(request, "x")
    ids = tokenizer.encode(STOP)
    assert len(ids) > 3
    for before in ("", "a" * 300, "##E" * 3):
        start = [*request.prompt_ids, *tokenizer.encode(before)]  # type: ignore[misc]
        for parts in splits(ids):
            known, (sample,) = list(start), desk.create_sequences(0, job)
            assert sample.is_stopped is not None
            for number, part in enumerate(parts, start=1):
                known += part
                assert sample.is_stopped(known) == (number == len(parts)), (before, parts)
