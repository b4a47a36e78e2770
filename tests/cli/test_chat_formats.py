"""A model that speaks another family's format is trained, spoken with, measured and trained on in that format."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from commands import typed

from rorqual.core.records import Message
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams

GOLDEN = Path(__file__).parents[1] / "data" / "chat" / "golden"


def ids_of(family: str) -> Tokenizer:
    return Tokenizer.load(GOLDEN / f"tokenizer-{family}.json")


def test_a_chatml_run_is_trained_measured_and_spoken_with(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    conversation = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    (place / "mine.jsonl").write_text("\n".join(json.dumps(conversation) for _ in range(8)), encoding="utf-8")
    (place / "tokenizer.json").write_text(ids_of("smollm2").source, encoding="utf-8")
    made = typed(place, "train", "sft", "data=mine.jsonl", "tokenizer=tokenizer.json", "chat=smollm2", "size=tiny", "steps=30",
                 "rows=4", "row=512", "out=run")  # fmt: skip
    assert made.code == 0, made.err
    assert yaml.safe_load((place / "run" / "run.yaml").read_text(encoding="utf-8"))["chat"] == "smollm2"

    spoken = typed(place, "chat", "run", "max_tokens=8", stdin="Hi\nHi\n")
    assert spoken.code == 0, spoken.err
    assert "<think>" not in spoken.out, "a family that does not think gives plain content"

    measured = typed(place, "eval", "run", "task=families", "count=2", "max_tokens=4")
    assert measured.code == 0, measured.err

    again = typed(place, "train", "sft", "data=mine.jsonl", "start=run", "steps=1", "rows=4", "row=512", "out=on")
    assert again.code == 0, again.err
    assert yaml.safe_load((place / "on" / "run.yaml").read_text(encoding="utf-8"))["chat"] == "smollm2", "inherited"

    wrong = typed(
        place, "train", "sft", "data=mine.jsonl", "start=run", "chat=qwen3", "steps=1", "row=512", "out=wrong"
    )
    assert wrong.code == 2 and "the tokenizer lacks <think>, </think>, which chat format 'qwen3'" in wrong.err
    assert not (place / "wrong").exists()

    engine = Engine(place / "run")
    request = Request((Message("user", "Hi"),), SamplingParams(max_tokens=2))
    given = engine.generate([request])[0][0]
    prompt = engine.tokenizer.decode(given.prompt_ids, specials=True)
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
