"""The student: dense, in Qwen3's shape, with a quarter of its teacher's active parameters."""

from __future__ import annotations

import pytest
import torch

from rorqual.model.account import account
from rorqual.model.attention import GQAConfig
from rorqual.model.decoder import Decoder
from rorqual.model.ffn import DenseConfig
from rorqual.recipes.models import student_like, v3_like


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
@pytest.mark.parametrize("vocab", [263, 1024])
def test_a_student_has_a_quarter_of_its_teachers_active_parameters(size: str, vocab: int) -> None:
    if size == "tiny" and vocab > 263:
        pytest.skip("its vocabulary alone would be more than a quarter")
    teacher = v3_like(size, vocab_size=vocab, context=128)  # type: ignore[arg-type]
    student = student_like(teacher)
    (stage,) = student.stages
    assert account(student).active == pytest.approx(account(teacher).active / 4, rel=0.03)
    with torch.device("meta"):
        assert sum(p.numel() for p in Decoder(student).parameters()) == account(student).active
    attention, ffn = stage.attention, stage.ffn
    assert isinstance(attention, GQAConfig) and isinstance(ffn, DenseConfig)
    assert attention.qk_norm and not attention.attention_bias and student.tie_word_embeddings
    assert attention.num_attention_heads == 2 * attention.num_key_value_heads
    assert all(width % 8 == 0 for width in (student.hidden_size, attention.head_dim, ffn.intermediate_size))
    assert 2 <= ffn.intermediate_size / student.hidden_size <= 4
    assert (student.vocab_size, student.max_position_embeddings) == (vocab, 128)
