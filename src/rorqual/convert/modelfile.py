"""The Modelfile of an exported GGUF file. A Modelfile tells Ollama how to format prompts and where replies end.

Source: docs/modelfile.mdx and template/template.go of ollama/ollama. Ollama gives a prompt template all messages as
`.Messages`, and the joined system messages as `.System`. Ollama adds the BOS token itself.
"""

from __future__ import annotations

from pathlib import Path

from rorqual.core.records import RunDir, Thinking
from rorqual.data.chat import ChatFormat
from rorqual.data.chat.chatml import ChatMLBase

CHATML = """{{ range $i, $_ := .Messages }}FIRST<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
FIRST = """{{ if and (eq $i 0) (ne .Role "system") }}<|im_start|>system
SYSTEM<|im_end|>
{{ end }}"""
LLAMA3 = """{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

"""
DEEPSEEK = (
    '{{ .System }}{{ range .Messages }}{{ if eq .Role "user" }}<｜User｜>{{ .Content }}{{ else if eq .Role "assistant" }}'
    "<｜Assistant｜>PAST{{ .Content }}<｜end▁of▁sentence｜>{{ end }}{{ end }}<｜Assistant｜>"
)
OTHERS = {
    "llama3": LLAMA3,
    "deepseek": DEEPSEEK.replace("PAST", "</think>"),
    "deepseek-v3": DEEPSEEK.replace("PAST", ""),
    "deepseek-r1": DEEPSEEK.replace("PAST", ""),
}


def modelfile_of(gguf: Path) -> Path:
    """Return the path of the Modelfile of a GGUF file: `model.Modelfile` for `model.gguf`."""
    return gguf.with_name(gguf.name.removesuffix(".gguf") + ".Modelfile")


def modelfile_text(run: RunDir, chat: ChatFormat, name: str, context: int) -> tuple[str, tuple[str, ...]]:
    """Return the text of the Modelfile for the GGUF file `name` of a run, and notes on settings that the Modelfile leaves out.

    `context` is the model's context length in tokens. Raises ConfigError if the run's `defaults.json` is invalid.
    """
    task, notes = run.task_defaults(), []
    lines = [f"FROM ./{name}"]
    template = go_template(chat, (task.thinking or "auto") if chat.thinks else "auto")
    if template is None:
        notes.append(f"no TEMPLATE in the Modelfile: chat format '{chat.name}' has no Go template")
    else:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f'PARAMETER stop "{chat.tokenizer.decode([id_], specials=True)}"' for id_ in chat.stop_ids]
    lines.append(f"PARAMETER num_ctx {context}")
    if task.temperature is not None:
        lines.append(f"PARAMETER temperature {task.temperature:g}")
    if task.max_tokens is not None:
        lines.append(f"PARAMETER num_predict {task.max_tokens}")
    if task.grammar is not None:
        notes.append(
            "no grammar in the Modelfile: send a JSON schema with each request to Ollama (`format`), or use rorqual serve"
        )
    if task.calculator:
        notes.append(
            "Ollama has no calculator, so this model calculates by itself there, and makes more errors: use rorqual serve"
        )
    return "\n".join(lines) + "\n", tuple(notes)


def go_template(chat: ChatFormat, thinking: Thinking) -> str | None:
    """Return the prompt of a chat format as a Go template, without BOS. Return None if no Go template is known for the chat
    format."""
    turns = OTHERS.get(chat.name)
    if isinstance(chat, ChatMLBase):
        system = chat.settings["default_system"]
        turns = CHATML.replace("FIRST", FIRST.replace("SYSTEM", system) if system else "")
    return None if turns is None else turns + chat.tokenizer.decode(chat.thinking_suffix(thinking), specials=True)
