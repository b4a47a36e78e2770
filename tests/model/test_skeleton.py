"""A model without numbers is the model in everything else, and costs nothing."""

from __future__ import annotations

import subprocess
import sys

from rorqual.data.tokenizer import BASE_VOCAB
from rorqual.model import Decoder
from rorqual.model.meta_device import build_on_meta_device
from rorqual.recipes.models import student_like, v3_like

BUILD = """
import sys
from rorqual.model.meta_device import allocate, build_on_meta_device
from rorqual.recipes.models import v3_like
before = len(sys.modules)
allocate(build_on_meta_device(v3_like("tiny", vocab_size=300, context=64)), "cpu")
print(len(sys.modules) - before)
"""


def test_names_shapes_and_types_are_the_models_and_nothing_is_allocated() -> None:
    teacher = v3_like("tiny", vocab_size=BASE_VOCAB, context=64)
    for config in (teacher, student_like(teacher)):
        empty, real = build_on_meta_device(config).state_dict(), Decoder(config).state_dict()
        assert {n: (t.shape, t.dtype) for n, t in empty.items()} == {n: (t.shape, t.dtype) for n, t in real.items()}
        assert {tensor.device.type for tensor in empty.values()} == {"meta"}


def test_building_and_allocating_one_does_not_import_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) < 20
