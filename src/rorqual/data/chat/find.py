"""Find the chat format by its name, by the chat template of a checkpoint, or by a run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rorqual.core.errors import CheckpointError, DataError, suggest_name
from rorqual.core.records import Message, RunDir
from rorqual.core.registry import find_kinds, import_plugins, kinds
from rorqual.data.chat.chat_format import ChatFormat
from rorqual.data.chat.chatml import START, ChatML, PlainChatML, Qwen2Chat, Qwen3Chat, SmolLM2Chat
from rorqual.data.chat.deepseek import DeepSeekChat, DeepSeekR1Chat, DeepSeekV3Chat
from rorqual.data.chat.deepseek_v32 import DeepSeekV32Chat
from rorqual.data.chat.llama3 import START_HEADER, Llama3Chat, Llama31Chat
from rorqual.data.chat.none import NoChat
from rorqual.data.chat.template import TemplateChat
from rorqual.data.chat.turns import BuiltinChatFormat
from rorqual.data.tokenizer import SpecialToken, Tokenizer

KINDS: tuple[type[BuiltinChatFormat], ...] = (
    DeepSeekV32Chat,
    DeepSeekChat,
    DeepSeekR1Chat,
    DeepSeekV3Chat,
    Qwen3Chat,
    ChatML,
    Qwen2Chat,
    SmolLM2Chat,
    PlainChatML,
    Llama31Chat,
    Llama3Chat,
)
"""Rorqual's own formats, in the order in which `guess_chat_name` tries them. Formats of plug-ins come after them."""
DEFAULT = "deepseek"
"""The chat format of a run whose `run.yaml` does not set `chat`."""
TEMPLATE_FILE = "chat_template.jinja"
"""Name of the template file in the run directory of a run with `chat: template`."""
DSML_TOKEN = "｜DSML｜"
"""The special token of DSML tool calls, which DeepSeek-V3.2 introduced."""

PROBES = (
    (Message("user", "A?"),),
    (Message("system", "Be brief."), Message("user", "A?")),
    (Message("user", "A?"), Message("assistant", "B."), Message("user", "C?")),
)


def chat_format(tokenizer: Tokenizer, name: str = DEFAULT) -> ChatFormat:
    """Return the chat format `name` for `tokenizer`: any imported subclass of `ChatFormat` with this `name`.

    Raises DataError if the name is unknown, or if the tokenizer lacks special tokens of the format.
    """
    known = find_kinds(ChatFormat, name)  # type: ignore[type-abstract]
    if name == TemplateChat.name:
        raise DataError(
            "the run's chat template belongs to an unknown model family, so there is no loss mask for training",
            where="chat",
            remedy=f"To train, set chat to the format of the model: {', '.join(kind.name for kind in KINDS)}. To train on plain "
            "text, set chat=none.",
        )
    if name not in known:
        raise DataError(f"unknown chat format {name!r}", where="chat", remedy=suggest_name(name, known))
    return known[name](tokenizer)


def guess_chat_name(model_type: str, tokenizer: Tokenizer, template: str | None) -> str:
    """Return the name of the chat format that a checkpoint was trained with.

    If the checkpoint has a template, return the format that writes the same prompts, or `template` if no format does. Without a
    template, choose the format by the special tokens and `model_type` (such as `qwen3`). Return `none` if the tokenizer has no
    special tokens that delimit chat turns.
    """
    if template is None:
        return _guess_without_template(model_type, tokenizer)
    names = tokenizer.special_names
    published = TemplateChat(tokenizer, template, bos=_bos(tokenizer), stop=())
    import_plugins()
    formats = kinds(BuiltinChatFormat)  # type: ignore[type-abstract]
    for kind in dict.fromkeys((*KINDS, *formats.values())):
        if names.issuperset(kind.marks) and _writes_same_prompts(kind(tokenizer), published):
            return kind.name
    return TemplateChat.name


def load_chat(run: RunDir, tokenizer: Tokenizer) -> ChatFormat:
    """Return the chat format that `chat` in `run.yaml` names. If `chat` is `template`, read the template file of the run
    directory."""
    data = run.config()
    if (name := _chat_name(data, run)) != TemplateChat.name:
        return chat_format(tokenizer, name)
    file = run.path / TEMPLATE_FILE
    try:
        template = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the run's chat template: {error}",
            where=str(file),
            remedy="Restore the file, or set `chat` in run.yaml to a known format.",
        ) from None
    generation = data.get("generation") or {}
    return TemplateChat(
        tokenizer,
        template,
        where=str(file),
        bos=_bos(tokenizer),
        stop=_end_token_names(tokenizer, generation.get("eos_token_id"), str(run.config_file)),
    )


def read_chat_name(run: RunDir) -> str:
    """Return the name of the chat format that a run directory uses."""
    return _chat_name(run.config(), run)


def _chat_name(data: Mapping[str, Any], run: RunDir) -> str:
    name = data.get("chat", DEFAULT)
    if not isinstance(name, str):
        raise CheckpointError(
            f"a chat format must be a name, not {name!r}", where=f"{run.config_file} (chat)", remedy="Restore run.yaml."
        )
    return name


def _guess_without_template(model_type: str, tokenizer: Tokenizer) -> str:
    names = tokenizer.special_names
    thinks = {SpecialToken.THINK, SpecialToken.END_THINK} <= names
    if SpecialToken.USER in names:
        if thinks and (model_type == "deepseek_v32" or DSML_TOKEN in names):
            return DeepSeekV32Chat.name
        return DeepSeekChat.name if thinks else DeepSeekV3Chat.name
    if START in names:
        if model_type.startswith("qwen3") and thinks:
            return Qwen3Chat.name
        return ChatML.name if model_type == "qwen2" else PlainChatML.name
    return Llama3Chat.name if START_HEADER in names else NoChat.name


def _writes_same_prompts(chat: BuiltinChatFormat, published: TemplateChat) -> bool:
    """Return whether a template writes the same prompts as `chat` in all thinking modes.

    Three differences between the prompts are accepted. In mode `auto`, the template may write the prompt that `chat` writes in
    any mode; for example, V3.1's template turns thinking off. In mode `on`, the template may write the `auto` prompt of `chat`.
    In all modes, the template of a family that always thinks may write the `on` prompt.
    """
    for probe in (*PROBES, *chat.probes):
        auto, on, off = (chat.prompt(probe, mode) for mode in ("auto", "on", "off"))
        try:
            their_auto, their_on, their_off = (published.prompt(probe, mode) for mode in ("auto", "on", "off"))
        except DataError:
            return False  # the template is broken or raises an error for a prompt that `chat` supports
        always_thinks = their_auto == their_on == their_off == on
        if not always_thinks and not (their_off == off and their_auto in (auto, off, on) and their_on in (on, auto)):
            return False
    return True


def _bos(tokenizer: Tokenizer) -> str:
    """Return the `bos_token` to pass to a template, or "" if the tokenizer has no BOS token."""
    known = (SpecialToken.BOS, "<|begin_of_text|>", "<s>")
    return next((name for name in known if name in tokenizer.special_names), "")


def _end_token_names(tokenizer: Tokenizer, ids: Any, where: str) -> Sequence[str]:
    """Return the names of the end tokens. `ids` is the `eos_token_id` of a generation config: an id or a list of ids."""
    id_list = ids if isinstance(ids, list) else [ids]
    if not id_list or not all(isinstance(id_, int) and tokenizer.is_special(id_) for id_ in id_list):
        raise DataError(
            f"{ids} is not the id of a special token",
            where=f"{where} (generation.eos_token_id)",
            remedy="Set `eos_token_id` to the id of the token that ends the model's turns, or to a list of such ids.",
        )
    return [tokenizer.token(id_) for id_ in id_list]
