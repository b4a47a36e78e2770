"""A checkpoint's own template finds its format, an unknown one can chat and never trains, and a run is read with its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_families import FAMILY, TEMPLATES, made, tokenizer

from rorqual.core.errors import CheckpointError, DataError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import KINDS, TEMPLATE_FILE, chat_format, guess_chat_name, load_chat, read_chat_name
from rorqual.data.tokenizer import Tokenizer

USER = Message("user", "Hello?")
UNKNOWN = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
)
"""Nobody's."""


@pytest.mark.parametrize(
    ("file", "family", "name"),
    [
        ("qwen2.5", "qwen", "chatml"),
        ("qwen3", "qwen", "qwen3"),
        ("smollm2", "smollm2", "smollm2"),
        ("deepseek-r1", "deepseek", "deepseek-r1"),
        ("deepseek-r1-distill", "deepseek", "deepseek-r1"),
        ("deepseek-v3.1", "deepseek", "deepseek"),
    ],
)
def test_a_published_template_is_recognised_by_what_it_writes(file: str, family: str, name: str) -> None:
    template = (TEMPLATES / f"{file}.jinja").read_text(encoding="utf-8")
    assert guess_chat_name("", tokenizer(family), template) == name
    other = template.replace("assistant", "model").replace("Assistant", "User")
    assert guess_chat_name("", tokenizer(family), other) == "template", "changed in what it writes, it is another's"
    assert guess_chat_name("", tokenizer(family), "{# a comment #}" + template) == name, (
        "changed in how it says it, it is not"
    )


@pytest.mark.parametrize("name", FAMILY)
def test_what_we_export_is_recognised_when_it_comes_back(name: str) -> None:
    assert guess_chat_name("", made(name).tokenizer, made(name).template) == name


@pytest.mark.parametrize(
    ("model_type", "family", "name"),
    [
        ("qwen3", "qwen", "qwen3"),
        ("qwen3_moe", "qwen", "qwen3"),
        ("qwen2", "qwen", "chatml"),
        ("llama", "smollm2", "chatml-plain"),
        ("llama", "llama3", "llama3"),
        ("deepseek_v3", "deepseek", "deepseek"),
        ("deepseek_v32", "deepseek", "deepseek-v3.2"),
    ],
)
def test_without_a_template_the_special_tokens_say_it(model_type: str, family: str, name: str) -> None:
    assert guess_chat_name(model_type, tokenizer(family), None) == name


def test_our_own_tokenizer_speaks_our_own_format() -> None:
    assert guess_chat_name("deepseek_v3", Tokenizer.byte_level(), None) == "deepseek"


def test_a_tokenizer_that_knows_no_turns_is_a_base_models() -> None:
    base = without_marks()
    assert guess_chat_name("llama", base, None) == "none"
    chat = chat_format(base, "none")
    for call in (chat.prompt, chat.render):
        with pytest.raises(DataError, match="chat=none: this is a base model"):
            call([USER])
    assert chat.parse(base.encode("so it goes on")) == Message("assistant", "so it goes on")
    assert chat.stop_ids == () and chat.pad == 0
    ends = chat_format(tokenizer("qwen"), "none")
    assert ends.stop_ids == (tokenizer("qwen").special_id("<|endoftext|>"),)
    assert ends.parse([*base.encode("a"), *ends.stop_ids, *base.encode("b")]).content == "a"


def without_marks() -> Tokenizer:
    return Tokenizer(json.dumps(json.loads(tokenizer("qwen").source) | {"added_tokens": []}))


def test_a_broken_or_hostile_template_is_nobodys() -> None:
    for template in ("{{ messages[9].content + 1 }}", "{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}"):
        assert guess_chat_name("qwen3", tokenizer("qwen"), template) == "template"
    with pytest.raises(DataError, match="not a valid jinja2 template"):
        guess_chat_name("qwen3", tokenizer("qwen"), "{% for %}")


# ---- a run's own


def run(tmp_path: Path, text: str) -> RunDir:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return RunDir(tmp_path)


@pytest.mark.parametrize("name", FAMILY)
def test_a_run_is_read_with_the_format_that_it_names(name: str, tmp_path: Path) -> None:
    there = run(tmp_path, f"recipe: import\nchat: {name}\n")
    chat = load_chat(there, made(name).tokenizer)
    assert chat.name == read_chat_name(there) == name
    assert chat.prompt([USER]) == made(name).prompt([USER])


def test_a_run_that_names_none_is_ours(tmp_path: Path) -> None:
    assert load_chat(run(tmp_path, "recipe: sft\n"), Tokenizer.byte_level()).name == "deepseek"


def test_an_unknown_template_travels_with_its_run_and_never_trains(tmp_path: Path) -> None:
    ids = tokenizer("qwen")
    assert guess_chat_name("llama", ids, UNKNOWN) == "template"
    end, other = ids.special_id("<|im_end|>"), ids.special_id("<|im_start|>")
    there = run(tmp_path, f"chat: template\ngeneration: {{eos_token_id: [{end}, {other}]}}\n")
    (tmp_path / TEMPLATE_FILE).write_text(UNKNOWN, encoding="utf-8")
    chat = load_chat(there, ids)
    assert ids.decode(chat.prompt([USER]), specials=True) == "<|im_start|>user:Hello?<|im_end|><|im_start|>assistant:"
    assert chat.stop_ids == (end, other) and chat.template == UNKNOWN
    assert chat.parse([*ids.encode("Hi."), end, *ids.encode("no")]) == Message("assistant", "Hi.")
    with pytest.raises(DataError, match="no loss mask"):
        chat.render([USER, Message("assistant", "a")])
    with pytest.raises(DataError, match="unknown model family, so there is no loss mask") as caught:
        chat_format(ids, "template")
    assert all(kind.name in caught.value.remedy for kind in KINDS)


def test_a_template_that_opens_the_thinking_is_read_from_inside(tmp_path: Path) -> None:
    ids = tokenizer("qwen")
    there = run(tmp_path, f"chat: template\ngeneration: {{eos_token_id: {ids.special_id('<|im_end|>')}}}\n")
    opening = UNKNOWN.replace("assistant:'", "assistant:<think>'")
    (tmp_path / TEMPLATE_FILE).write_text(opening, encoding="utf-8")
    chat = load_chat(there, ids)
    assert chat.parse(ids.encode("so")) == Message("assistant", "", "so"), "cut off, all of it is thought"
    closed = [*ids.encode("so"), ids.special_id("</think>"), *ids.encode("4"), *chat.stop_ids]
    assert chat.parse(closed) == Message("assistant", "4", "so")


def test_what_a_run_lacks_is_named(tmp_path: Path) -> None:
    ids = tokenizer("qwen")
    with pytest.raises(CheckpointError, match=r"not a run directory: it has no run\.yaml"):
        load_chat(RunDir(tmp_path), ids)
    with pytest.raises(DataError, match="unknown chat format 'chatlm'") as caught:
        load_chat(run(tmp_path, "chat: chatlm\n"), ids)
    assert caught.value.remedy == "Did you mean 'chatml'?"
    with pytest.raises(DataError, match=r"chat_template\.jinja: cannot read the run's chat template"):
        load_chat(run(tmp_path, "chat: template\n"), ids)
    (tmp_path / TEMPLATE_FILE).write_text(UNKNOWN, encoding="utf-8")
    for wrong in ("null", "[]", "5", "[1.5]"):
        there = run(tmp_path, f"chat: template\ngeneration: {{eos_token_id: {wrong}}}\n")
        with pytest.raises(DataError, match="is not the id of a special token") as caught:
            load_chat(there, ids)
        assert "generation.eos_token_id" in caught.value.where
    for text in ("chat: [", "- chat", "chat: 3"):
        with pytest.raises(CheckpointError):
            load_chat(run(tmp_path, text), ids)
