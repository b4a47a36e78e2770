"""Fresh weights: the deviation is the config's, and the seed decides them."""

from __future__ import annotations

import pytest

from rorqual.model import build
from rorqual.recipes.models import v3_like


@pytest.mark.parametrize("deviation", [0.006, 0.1])
def test_matrices_have_the_deviation_of_the_config_and_vectors_none(deviation: float) -> None:
    config = v3_like("tiny", vocab_size=500, context=64).model_copy(update={"initializer_range": deviation})
    for name, parameter in build(config, seed=0).named_parameters():
        if parameter.dim() > 1:
            assert float(parameter.detach().std()) == pytest.approx(deviation, rel=0.15), name
            assert abs(float(parameter.detach().mean())) < 0.2 * deviation, name
        else:
            assert set(parameter.tolist()) == {0.0 if name.endswith("bias") else 1.0}, name
