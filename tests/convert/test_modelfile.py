"""The Modelfile beside a GGUF file: its grammar, its parameters, and a template that writes the prompts of the chat format.

`parsed` reads Ollama's documented grammar, and `Template` the part of Go's templates that our templates may use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
INSTRUCTIONS = {"from", "parameter", "template", "system", "adapter", "license", "message", "requires"}
TYPES = {"num_ctx": int, "num_predict": int, "temperature": float, "stop": str}
USER, SYSTEM = Message("user", 'Say "hi" {{ .Role }}'), Message("system", "Be brief.\n\nAlways.")
ASSISTANT, AGAIN = Message("assistant", "Hi.\nYou?"), Message("user", "What is 17 + 4?\n")
CONVERSATIONS = {
    "user": [USER],
    "system, user": [SYSTEM, USER],
    "user, assistant, user": [USER, ASSISTANT, AGAIN],
    "system, user, assistant, user": [SYSTEM, USER, ASSISTANT, AGAIN],
}


def parsed(text: str) -> list[tuple[str, str]]:
    """The instructions of a Modelfile, each with its argument. A parameter is an instruction `parameter NAME`."""
    found, rest = [], text
    while rest := re.sub(r"\A(?:\s|#[^\n]*(?:\n|\Z))+", "", rest):
        line = re.match(r"([A-Za-z]+)[ \t]+", rest)
        assert line, f"no instruction: {rest[:40]!r}"
        name, rest = line[1].lower(), rest[line.end() :]
        assert name in INSTRUCTIONS, name
        if name == "parameter":
            line = re.match(r"([A-Za-z0-9_]+)[ \t]+", rest)
            assert line, f"no parameter: {rest[:40]!r}"
            name, rest = f"parameter {line[1]}", rest[line.end() :]
        value = re.match(
            r'"""(.*?)"""[ \t]*(?:\n|\Z)|"([^"]*)"[ \t]*(?:\n|\Z)|([^"\s][^\n]*)(?:\n|\Z)', rest, re.DOTALL
        )
        assert value, f"no value of {name}: {rest[:40]!r}"
        found.append((name, next(group for group in value.groups() if group is not None)))
        rest = rest[value.end() :]
    assert [name for name, _ in found].count("from") == 1
    return found


def test_the_parser_reads_what_the_reference_shows_and_refuses_what_it_does_not() -> None:
    text = '# a comment\nFROM llama3.2\n\nPARAMETER stop "AI assistant:"\nsystem You are Mario.\nTEMPLATE """{{ .Prompt }}\n"""\n'
    assert parsed(text) == [
        ("from", "llama3.2"),
        ("parameter stop", "AI assistant:"),
        ("system", "You are Mario."),
        ("template", "{{ .Prompt }}\n"),
    ]
    for bad in (
        "PARAMETER stop x",
        "FROM x\nNUM_CTX 3",
        'FROM x\nTEMPLATE """a',
        'FROM x\nTEMPLATE "a\nb" c',
        "FROM\n",
    ):
        with pytest.raises(AssertionError):
            parsed(bad)


class Template:
    """A Go template of texts, fields, variables, `range`, `if`, `else`, `eq`, `ne` and `and`."""

    def __init__(self, text: str) -> None:
        parts = re.split(r"\{\{(.*?)\}\}", text, flags=re.DOTALL)
        assert not any(part.strip().startswith("-") or part.strip().endswith("-") for part in parts[1::2]), "trim marks"
        self._parts = [(number % 2 == 1, part.strip() if number % 2 else part) for number, part in enumerate(parts)]
        self._nodes, end = self._block(0)
        assert end == len(self._parts), "an `end` too many"

    def _block(self, at: int) -> tuple[list[Any], int]:
        """Nodes up to `else` or `end`: text, an expression, or (keyword, expression, block, block of else)."""
        nodes: list[Any] = []
        while at < len(self._parts):
            is_action, part = self._parts[at]
            word, _, rest = part.partition(" ")
            if is_action and word in ("end", "else"):
                return nodes, at
            if is_action and word in ("if", "range"):
                node, at = self._branch(word, rest, at)
                nodes.append(node)
            else:
                nodes.append(("show", part) if is_action else part)
            at += 1
        return nodes, at

    def _branch(self, word: str, condition: str, at: int) -> tuple[Any, int]:
        block, at = self._block(at + 1)
        other: list[Any] = []
        end = self._parts[at][1]
        if end.startswith("else if "):
            node, at = self._branch("if", end.removeprefix("else if "), at)
            return (word, condition, block, [node]), at
        if end == "else":
            other, at = self._block(at + 1)
        assert self._parts[at] == (True, "end")
        return (word, condition, block, other), at

    def render(self, dot: dict[str, Any]) -> str:
        return "".join(self._rendered(self._nodes, dot, {}))

    def _rendered(self, nodes: Sequence[Any], dot: Any, variables: dict[str, Any]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, str):
                yield node
            elif node[0] == "show":
                yield str(value_of(node[1], dot, variables))
            elif node[0] == "if":
                yield from self._rendered(node[2] if value_of(node[1], dot, variables) else node[3], dot, variables)
            else:
                names, _, over = node[1].rpartition(":=")
                for pair in enumerate(value_of(over.strip(), dot, variables)):
                    named = dict(zip((name.strip() for name in names.split(",")), pair)) if names else {}
                    yield from self._rendered(node[2], pair[1], variables | named)


def value_of(text: str, dot: Any, variables: dict[str, Any]) -> Any:
    """The value of an expression such as `and (eq $i 0) (ne .Role "system")`."""
    tokens = re.findall(r'"[^"]*"|[()]|[^\s()]+', text)

    def operand() -> Any:
        token = tokens.pop(0)
        if token == "(":
            value = call()
            assert tokens.pop(0) == ")"
            return value
        if token[0] == '"' or token.isdigit():
            return json.loads(token)
        return dot[token[1:]] if token[0] == "." else variables[token]

    def call() -> Any:
        if tokens[0] not in ("eq", "ne", "and"):
            return operand()
        name = tokens.pop(0)
        one, two = operand(), operand()
        return {"eq": one == two, "ne": one != two, "and": one and two}[name]

    value = call()
    assert not tokens, text
    return value


def prompt_of(template: str, messages: Sequence[Message]) -> str:
    """What Ollama makes of a conversation without two messages of one role in a row."""
    system = "\n\n".join(message.text for message in messages if message.role == "system")
    rows = [{"Role": message.role, "Content": message.text} for message in messages]
    return Template(template).render({"System": system, "Messages": rows})


def test_the_interpreter_renders_as_go_does() -> None:
    """Of nested branches, and of what Go refuses."""
    text = (
        '{{ range $i, $_ := .Messages }}{{ if and (eq $i 1) (ne .Role "x") }}2:{{ else if eq .Role "x" }}X{{ else }}-'
        "{{ end }}{{ .Content }} {{ end }}{{ .System }}"
    )
    rows = [{"Role": role, "Content": content} for role, content in (("u", "a"), ("v", "b"), ("x", "c"))]
    assert Template(text).render({"System": "s", "Messages": rows}) == "-a 2:b Xc s"
    for bad in ("{{ end }}", "{{ if .System }}a", "{{ .Nothing }}"):
        with pytest.raises((AssertionError, IndexError, KeyError)):
            Template(bad).render({"System": "s"})


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
        run.defaults_file.write_text(json.dumps(defaults), encoding="utf-8")
    return run, path / name, export_gguf(run, path / name, dtype="f32", progress=silent)


def instructions(file: Path) -> list[tuple[str, str]]:
    return parsed(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("chat", FAMILIES)
@pytest.mark.parametrize("thinking", ["auto", "on", "off"])
def test_the_template_writes_the_prompts_of_the_format(tmp_path: Path, chat: str, thinking: Thinking) -> None:
    run, file, notes = exported(tmp_path, chat, thinking=thinking)
    assert notes == ()
    found = instructions(file.with_suffix(".Modelfile"))
    [template] = [value for name, value in found if name == "template"]
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
    assert stops == ["<|im_end|>", "<|endoftext|>"] and [chat.tokenizer.special(stop) for stop in stops] == [
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
    run.defaults_file.write_text('{"max_tokens": 0}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"defaults\.json"):
        export_gguf(run, tmp_path / "third.gguf", dtype="f32", progress=silent)
    assert not any(tmp_path.glob("other.gguf*")) and not any(tmp_path.glob("third*"))
    run.defaults_file.write_text('{"max_tokens": 1}', encoding="utf-8")
    export_gguf(run, tmp_path / "third.gguf", dtype="f32", progress=silent)
    assert (tmp_path / "third.Modelfile").is_file() and file.is_file()
