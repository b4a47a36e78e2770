"""One model: what is fed to a paged cache, in whatever pieces and blocks, is what one forward says. In fp32.

Every kind at every split: tests/conformance. To the last bit: test_same_bits.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from rorqual.core.errors import DataError
from rorqual.engine.kv_cache.paged import PagedCache, StepCache, token_bytes
from rorqual.model import Decoder
from rorqual.model.training_cache import PackedBatchCache
from rorqual.ops.backends import TORCH_INVARIANT
from rorqual.ops.backends.attention import AttentionMetadata
from rorqual.ops.paged import BLOCK

LENGTH = BLOCK + 21


@dataclass
class Fed:
    """Sequences that are fed to one cache, each with its own blocks."""

    model: Decoder
    cache: PagedCache
    tables: np.ndarray  # [sequences, blocks]
    at: dict[int, int] = field(default_factory=dict)

    @classmethod
    def fresh(cls, model: Decoder, sequences: int = 1, length: int = LENGTH) -> Fed:
        blocks = -(-length // BLOCK)
        order = np.random.default_rng(0).permutation(sequences * blocks) + 1
        cache = PagedCache(
            TORCH_INVARIANT.attention, model.config, len(order) + 1, torch.device("cpu"), torch.float32, length
        )
        return cls(model, cache, order.reshape(sequences, blocks))

    @torch.no_grad()
    def feed(self, pieces: dict[int, Tensor], *, embedded: bool = False) -> dict[int, Tensor]:
        """Feed each sequence its piece [tokens], all in one forward; its logits [tokens, vocab]. `embedded`: as embeddings, behind ids 0."""
        names = np.array(list(pieces))
        first = np.array([self.at.get(name, 0) for name in pieces])
        count = np.array([len(piece) for piece in pieces.values()])
        at = np.concatenate([np.arange(a, a + n) for a, n in zip(first, count)])
        block = self.tables[np.repeat(names, count), at // BLOCK]
        loc = np.append(0, np.cumsum(count))
        metadata = AttentionMetadata(loc, first + count, self.tables[names], block * BLOCK + at % BLOCK)
        step = StepCache(self.cache, self.cache.attention.plan(metadata, self.cache.device))
        ids = torch.cat(list(pieces.values())).unsqueeze(0)
        embeds = self.model.embed(ids) if embedded else None
        ids = torch.zeros_like(ids) if embedded else ids
        output = self.model(ids, torch.from_numpy(at).unsqueeze(0), cache=step, inputs_embeds=embeds)
        logits = self.model.logits(output.hidden[0])
        self.at |= {name: int(a + n) for name, a, n in zip(pieces, first, count)}
        return dict(zip(pieces, logits.split(count.tolist())))


def some(count: int, length: int = LENGTH) -> list[Tensor]:
    return list(torch.randint(0, 264, (count, length), generator=torch.Generator().manual_seed(4)))


@torch.no_grad()
def whole(model: Decoder, ids: Tensor) -> Tensor:
    return model.logits(model(ids.unsqueeze(0)).hidden)[0]


def close(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() <= 5e-5 * b.abs().max()


def test_the_models_here_would_show_a_fault(model: Decoder) -> None:
    (ids,) = some(1)
    logits = whole(model, ids)
    assert 0.5 < logits.std() < 4
    shifted = model.logits(model(ids.unsqueeze(0), torch.arange(LENGTH).mul(2).unsqueeze(0)).hidden)
    assert (shifted - logits).abs().max() > 1e-2 * logits.abs().max()  # positions matter


def test_sequences_fed_together_at_different_places_equal_themselves_alone(model: Decoder) -> None:
    rows = some(4)
    cuts = [(3, 70, LENGTH), (40, 41, LENGTH), (64, 65, LENGTH), (1, 84, LENGTH)]
    fed, parts = Fed.fresh(model, 4), [[] for _ in rows]  # type: ignore[var-annotated]
    for number in range(3):
        pieces = {i: rows[i][([0, *cuts[i]])[number] : cuts[i][number]] for i in (2, 0, 3, 1)}
        for i, logits in fed.feed(pieces).items():
            parts[i].append(logits)
    for row, logits in zip(rows, parts):
        close(torch.cat(logits), whole(model, row))


def test_embeddings_of_the_tokens_are_the_tokens_in_any_pieces(model: Decoder) -> None:
    (ids,) = some(1)
    plain, fed = Fed.fresh(model), Fed.fresh(model)
    for piece in (ids[:30], ids[30:31], ids[31:]):
        assert torch.equal(fed.feed({0: piece}, embedded=True)[0], plain.feed({0: piece})[0])


@torch.no_grad()
def test_what_lies_beyond_a_sequence_in_its_blocks_is_not_seen(model: Decoder) -> None:
    (ids,) = some(1)
    fed, full = Fed.fresh(model), Fed.fresh(model)
    for pool in full.cache.pools():
        if pool.is_floating_point():
            pool.fill_(1e4)
    for piece in (ids[:30], ids[30:31], ids[31:]):
        assert torch.equal(full.feed({0: piece})[0], fed.feed({0: piece})[0])


def test_blocks_copied_or_read_and_put_back_hold_what_they_held(model: Decoder) -> None:
    (ids,) = some(1)
    fed = Fed.fresh(model, 3)
    fed.feed({0: ids[:-1]})
    fed.cache.copy(fed.tables[1].tolist(), fed.tables[0].tolist())
    for mine, others in zip(fed.tables[2].tolist(), fed.tables[0].tolist()):
        assert fed.cache.write(mine, fed.cache.read(others))
    fed.at = dict.fromkeys(range(3), LENGTH - 1)
    found = [fed.feed({number: ids[-1:]})[number] for number in range(3)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    close(found[0], whole(model, ids)[-1:])


def test_a_block_of_another_size_is_not_written(model: Decoder) -> None:
    cache = Fed.fresh(model).cache
    contents = cache.read(1)
    assert len(contents) == token_bytes(model.config, torch.float32) * BLOCK
    before = [pool.clone() for pool in cache.pools()]
    assert not cache.write(1, contents[:-1] + b"") and not cache.write(1, contents + b"\1") and not cache.write(1, b"")
    assert all(torch.equal(a, b) for a, b in zip(before, cache.pools()))


@pytest.mark.parametrize("starts", [(1, 0), (0, 1)])
def test_a_document_that_does_not_begin_at_its_beginning_is_refused(starts: tuple[int, int]) -> None:
    positions = torch.stack([torch.arange(5) + start for start in starts])
    with pytest.raises(DataError, match="position 0"):
        PackedBatchCache(positions, None, [], TORCH_INVARIANT.attention)
    PackedBatchCache(positions - torch.tensor(starts).unsqueeze(1), None, [], TORCH_INVARIANT.attention)
