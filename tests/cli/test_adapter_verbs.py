"""From the shell: an adapter is trained, told of, merged, written for peft and read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import refused

LORA = ("train", "sft", "task=families", "from=run", "steps=2", "rows=4", "tune.kind=lora", "tune.r=2", "out=lora")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("merge", "run", "merged"), ("nothing to merge", "rorqual export")),
        (("peft", "run", "folder"), ("not a LoRA", "rorqual merge")),
        (("peft", "run", "back", "base=run"), ("adapter_config.json", "save_pretrained")),
        ((*LORA, "tune.targets=oproj"), ("'oproj'", "Did you mean 'o_proj'")),
        ((*LORA, "tune.r=0"), ("tune.r", "0")),
        ((*LORA, "tune.rank=2"), ("'tune.rank'",)),
        (("train", "sft", "task=families", "size=tiny", "tune.kind=lora", "out=lora"), ("from=RUN",)),
    ],
    ids=lambda value: " ".join(value[-2:]) if len(value) > 1 else "",
)
def test_refused_with_a_remedy_and_nothing_written(place: Path, words: tuple[str, ...], says: tuple[str, ...]) -> None:
    words = words if "tune.r=0" not in words else tuple(w for w in words if w != "tune.r=2")
    refused(place, *words, says=says)
