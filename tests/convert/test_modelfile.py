"""The Modelfile beside a GGUF file: its grammar, its parameters, and a template that writes the prompts of the chat format.

`parsed` reads the part of Ollama's grammar that we write, and `prompt_of` the part of Go's templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from gguf_models import configs, filled, silent, write_run

from rorqual.convert.gguf import export_gguf
from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.core.records import Message, RunDir, Thinking
from rorqual.data.chat import KINDS, load_chat
from rorqual.data.tokenizer import Tokenizer

TOKENIZERS = Path(__file__).parents[1] / "data" / "chat" / "golden"
FAMILIES = {
    "smollm2": "smollm2", "chatml": "qwen", "qwen2": "qwen", "chatml-plain": "qwen", "qwen3": "qwen", "llama3": "llama3",
    "deepseek": "deepseek", "deepseek-v3": "deepseek", "deepseek-r1": "deepseek",
}  # fmt: skip
"""The formats with a template, each with its tokenizer; those of DeepSeek have our own, whose splitting GGUF has a name for."""
WITHOUT = {"llama3.1": "llama3", "deepseek-v3.2": "deepseek", "none": "smollm2"}
TYPES = {"num_ctx": int, "num_predict": int, "temperature": float, "stop": str}
USER, SYSTEM = Message("user", 'Say "hi" {{ .Role }}'), Message("system", "Be brief.\n\nAlways.")
ASSISTANT, AGAIN = Message("assistant", "Hi.\nYou?"), Message("user", "What is 17 + 4?\n")
CONVERSATIONS = {
    "user": [USER],
    "system, user": [SYSTEM, USER],
    "user, assistant, user": [USER, ASSISTANT, AGAIN],
    "system, user, assistant, user": [SYSTEM, USER, ASSISTANT, AGAIN],
}


INSTRUCTION = re.compile(r'(FROM|TEMPLATE|PARAMETER \w+) (?:"""(.*?)"""|"([^"\n]*)"|([^"\s][^\n]*))\n', re.DOTALL)


def parsed(text: str) -> list[tuple[str, str]]:
    """The instructions of a Modelfile, each with its argument. A parameter is an instruction `parameter NAME`."""
    found = [*INSTRUCTION.finditer(text)]
    assert "".join(match[0] for match in found) == text and [match[1] for match in found].count("FROM") == 1
    return [(match[1].lower(), match[2] or match[3] or match[4]) for match in found]


def prompt_of(template: str, messages: Sequence[Message]) -> str:
    """What Ollama makes of a conversation without two messages of one role in a row: our Go templates, rendered by Jinja."""
    ends: list[str] = []

    def condition(text: str) -> str:
        both = text.removeprefix("and ").replace(") (", ") and (") if text.startswith("and ") else text
        same = re.sub(r'(eq|ne) (\S+) ("[^"]*"|\d+)', lambda m: f"{m[2]} {'=!'[m[1] == 'ne']}= {m[3]}", both)
        return same.replace("$i", "loop.index0").replace(".Role", "message.Role")

    def action(match: re.Match[str]) -> str:
        word, _, rest = match[1].partition(" ")
        if word == "end":
            return f"{{% {ends.pop()} %}}"
        if word == "else":
            return f"{{% elif {condition(rest.removeprefix('if '))} %}}" if rest else "{% else %}"
        if word in ("if", "range"):
            ends.append("endif" if word == "if" else "endfor")
            return f"{{% if {condition(rest)} %}}" if word == "if" else "{% for message in Messages %}"
        return "{{ System }}" if word == ".System" else f"{{{{ message{word} }}}}"

    source = re.sub(r"\{\{ (.*?) \}\}", action, template)
    assert not ends
    system = "\n\n".join(message.text for message in messages if message.role == "system")
    rows = [{"Role": message.role, "Content": message.text} for message in messages]
    environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(System=system, Messages=rows)


def exported(path: Path, chat: str, name: str = "model.gguf", **defaults: Any) -> tuple[RunDir, Path, tuple[str, ...]]:
    """A run of a chat format, its GGUF file, and the notes of the export."""
    family = (FAMILIES | WITHOUT)[chat]
    file = TOKENIZERS / f"tokenizer-{family}.json"
    tokenizer = Tokenizer.byte_level() if family == "deepseek" else Tokenizer.load(file)
    config = configs()["llama"].model_copy(update={"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 384})
    run = write_run(path / "run", filled(config), tokenizer=tokenizer)
    settings = yaml.safe_load(run.config_file.read_text(encoding="utf-8")) | {"chat": chat}
    run.config_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    if defaults:
        run.task_defaults_file.write_text(json.dumps(defaults), encoding="utf-8")
    return run, path / name, export_gguf(run, path / name, dtype="f32", progress=silent)


def instructions(file: Path) -> list[tuple[str, str]]:
    return parsed(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("chat", FAMILIES)
@pytest.mark.parametrize("thinking", ["auto", "on", "off"])
def test_the_template_writes_the_prompts_of_the_format(tmp_path: Path, chat: str, thinking: Thinking) -> None:
    run, file, notes = exported(tmp_path, chat, thinking=thinking)
    assert notes == ()
    [template] = [value for name, value in instructions(file.with_suffix(".Modelfile")) if name == "template"]
    format_ = load_chat(run, Tokenizer.load(run.tokenizer_file))
    for messages in CONVERSATIONS.values():
        ids = format_.prompt(messages, thinking if format_.thinks else "auto")
        after_bos = ids[int(ids[0] == format_.bos) :]
        # Llama 3's format strips the white space around a message, which a Go template cannot do.
        given = [Message(m.role, m.text.strip()) for m in messages] if chat == "llama3" else messages
        assert prompt_of(template, given) == format_.tokenizer.decode(after_bos, specials=True)


def test_the_file_names_the_model_its_stops_and_its_context(tmp_path: Path) -> None:
    run, file, _ = exported(tmp_path, "smollm2", "my model.v2.gguf")
    found = instructions(tmp_path / "my model.v2.Modelfile")
    assert {name for name, _ in found} == {"from", "template", "parameter stop", "parameter num_ctx"}
    source = dict(found)["from"]
    assert source.startswith("./") and (tmp_path / source).resolve() == file.resolve() and file.is_file()
    chat = load_chat(run, Tokenizer.load(run.tokenizer_file))
    stops = [value for name, value in found if name == "parameter stop"]
    assert stops == ["<|im_end|>", "<|endoftext|>"] and [chat.tokenizer.special_id(stop) for stop in stops] == [
        *chat.stop_ids
    ]
    assert dict(found)["parameter num_ctx"] == "384"


@pytest.mark.parametrize(
    ("defaults", "parameters"),
    [
        ({"thinking": "off"}, {}),
        ({"max_tokens": 32}, {"num_predict": 32}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 0.25}, {"temperature": 0.25}),
        ({"grammar": {"kind": "regex", "source": "a+"}}, {}),
        ({"max_tokens": 7, "temperature": 0.0, "grammar": {"kind": "json"}}, {"temperature": 0, "num_predict": 7}),
        ({"calculator": True}, {}),
        ({"calculator": False}, {}),
    ],
)
def test_the_defaults_of_the_run_become_parameters(
    tmp_path: Path, defaults: dict[str, Any], parameters: dict[str, Any]
) -> None:
    _, file, notes = exported(tmp_path, "smollm2", **defaults)
    found = [(name.split()[1], value) for name, value in instructions(file.with_suffix(".Modelfile")) if " " in name]
    typed = {name: TYPES[name](value) for name, value in found}
    assert {name: typed[name] for name in typed if name not in ("stop", "num_ctx")} == parameters
    assert [("no grammar" in note) for note in notes] == [True] * ("grammar" in defaults) + [False] * bool(
        defaults.get("calculator")
    )
    assert any("no calculator" in note for note in notes) == bool(defaults.get("calculator"))


@pytest.mark.parametrize("chat", WITHOUT)
def test_a_format_without_a_template_has_none_and_the_export_says_so(tmp_path: Path, chat: str) -> None:
    _, file, notes = exported(tmp_path, chat)
    assert {name for name, _ in instructions(file.with_suffix(".Modelfile"))} >= {"from", "parameter num_ctx"}
    assert "TEMPLATE" not in file.with_suffix(".Modelfile").read_text(encoding="utf-8")
    assert [note for note in notes if "no TEMPLATE" in note and f"'{chat}'" in note] == [*notes] != []


def test_every_format_is_tested_here() -> None:
    assert {kind.name for kind in KINDS} | {"none"} == {*FAMILIES, *WITHOUT}


def test_a_modelfile_that_exists_and_invalid_defaults_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    run, file, _ = exported(tmp_path, "smollm2")
    other = tmp_path / "other.Modelfile"
    other.write_text("FROM x\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"other\.Modelfile: the file already exists"):
        export_gguf(run, tmp_path / "other.gguf", dtype="f32", progress=silent)
    assert other.read_text(encoding="utf-8") == "FROM x\n"
    run.task_defaults_file.write_text('{"max_tokens": 0}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"defaults\.json"):
        export_gguf(run, tmp_path / "third.gguf", dtype="f32", progress=silent)
    assert not any(tmp_path.glob("other.gguf*")) and not any(tmp_path.glob("third*"))
    run.task_defaults_file.write_text('{"max_tokens": 1}', encoding="utf-8")
    export_gguf(run, tmp_path / "third.gguf", dtype="f32", progress=silent)
    assert (tmp_path / "third.Modelfile").is_file() and file.is_file()
