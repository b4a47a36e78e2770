"""Fields of OpenAI's, vLLM's and llama.cpp's APIs that are not used here. Each is ignored where it changes nothing, and refused with a reason
where it would change the answer.

A place is written as a path without numbers: `messages[].content[]` are the parts of every message, and "" is the request itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from rorqual.core.parts import TYPES
from rorqual.core.sampling import PARAMS
from rorqual.serve.errors import ApiError, refuse

Rule = tuple[str, tuple[Any, ...]]
"""Why the field is refused, and the values at which it changes nothing."""
Route = Literal["chat", "completions"]

OWN_NAMES = ("top_logprobs", "grammar")
"""Parameters that OpenAI's API asks for by other fields: logprobs, response_format. All others are fields by their own names."""
OUR_OWN = frozenset(PARAMS) - {*OWN_NAMES}
"""Fields that are sampling parameters here, whatever they are elsewhere."""

IGNORED = frozenset(
    # OpenAI: bookkeeping, billing, and hints to a cache.
    {"user", "metadata", "store", "safety_identifier", "service_tier"}
    | {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"}
    # vLLM: names, hints, and details of what is not done here (beams, pictures, slow tokenizers, tokens shown as texts).
    | {
        "request_id",
        "cache_salt",
        "length_penalty",
        "early_stopping",
        "spaces_between_special_tokens",
        "truncation_side",
    }
    | {"mm_processor_kwargs", "media_io_kwargs", "guided_decoding_backend", "return_token_offsets"}
    | {"return_assistant_tokens_mask"}
    # llama.cpp: slots, its cache and the shifting of its context, drafts, and details of samplers that their own switch turns on.
    | {"cache_prompt", "id_slot", "slot_id", "n_cache_reuse", "n_keep", "n_discard", "backend_sampling"}
    | {f"speculative.{name}" for name in ("n_max", "n_min", "p_min", "type")}
    | {f"speculative.ngram_{name}" for name in ("size_n", "size_m", "m_hits")}
    | {"xtc_threshold", "dynatemp_exponent", "mirostat_tau", "mirostat_eta", "adaptive_decay"}
    | {"dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"}
) - {*OUR_OWN}
"""Fields of a request that change no answer at any value."""
IGNORED_INSIDE = frozenset({"messages[].content[].prompt_cache_breakpoint"})
"""The same within a request, by place."""

_MODEL_TEMPLATE = "the model's own chat template is used"
_NO_IMAGES = "this model writes and reads text alone"
_SAMPLER = "there is no such sampler here: use temperature, top_p, top_k or min_p"
_GRAMMAR = "use response_format, guided_json, guided_regex or guided_choice"
_CHAT = "it is a field of /v1/chat/completions"
_TEXT = "it is a field of /v1/completions"

TOP: Mapping[str, Rule] = {
    # OpenAI
    "functions": ("its successor is tools", ([],)),
    "function_call": ("its successor is tool_choice", ("none", "auto")),
    "modalities": (_NO_IMAGES, (["text"],)),
    "audio": (_NO_IMAGES, ()),
    "prediction": ("a predicted output is not used", ()),
    "web_search_options": ("this server searches nothing", ()),
    "moderation": ("this server moderates nothing", ()),
    "verbosity": ("this model does not know it: say in a message how long the answer is to be", ("medium",)),
    "best_of": ("use n, and choose among the answers yourself", (1,)),
    "suffix": ("this model cannot fill in the middle", ("",)),
    # vLLM
    "use_beam_search": ("there is no beam search here", (False,)),
    "include_stop_str_in_output": ("an answer ends before its stop string", (False,)),
    "skip_special_tokens": ("the marks of the chat format are read, not shown", (True,)),
    "truncate_prompt_tokens": ("a prompt is never cut: send fewer messages or a shorter text", (-1,)),
    "allowed_token_ids": ("use logit_bias or guided_choice", ()),
    "bad_words": ("use logit_bias with -100 for each token", ([],)),
    "add_generation_prompt": (_MODEL_TEMPLATE, (True,)),
    "continue_final_message": ("this model cannot continue an assistant's turn", (False,)),
    "documents": ("put what they say into a message", ([],)),
    "chat_template": (_MODEL_TEMPLATE, ()),
    "structured_outputs": (_GRAMMAR, ()),
    "guided_grammar": (_GRAMMAR, ("",)),
    "guided_whitespace_pattern": ("the blanks in JSON are the model's to choose", ()),
    "return_tokens_as_token_ids": ("tokens are shown as texts, with their bytes", (False,)),
    "return_token_ids": ("an answer carries no token ids", (False,)),
    "return_prompt_text": ("an answer does not carry its prompt", (False,)),
    "kv_transfer_params": ("the cache of this server stays on this server", ({},)),
    "ec_transfer_params": ("the cache of this server stays on this server", ({},)),
    "vllm_xargs": ("no extension is installed", ({},)),
    "repetition_detection": ("use repetition_penalty, stop or max_tokens", ()),
    "thinking_token_budget": ("a thought has no budget of its own: use max_tokens or reasoning_effort: none", (-1,)),
    "include_reasoning": ("an answer carries the reasoning apart, as reasoning_content", (True,)),
    "logits_processors": ("none can be installed", ([],)),
    "prompt_embeds": ("a prompt is text or token ids", ()),
    "logprob_token_ids": ("use logprobs", ()),
    # llama.cpp
    "n_predict": ("the name here is max_tokens", (-1,)),
    "n_cmpl": ("the name here is n", (1,)),
    "n_probs": ("the name here is logprobs", (0,)),
    "min_keep": (_SAMPLER, (0,)),
    "post_sampling_probs": ("the name here is logprobs, which are of the distribution drawn from", (False,)),
    "return_tokens": ("an answer carries no token ids", (False,)),
    "return_progress": ("a stream carries no progress", (False,)),
    "timings_per_token": ("an answer carries no timings: see /metrics", (False,)),
    "response_fields": ("an answer has the fields of OpenAI's API", ([],)),
    "n_indent": ("an answer is not cut by its indentation", (0,)),
    "t_max_predict_ms": ("an answer is not cut by a clock: use max_tokens", (0, -1)),
    "t_max_prompt_ms": ("a prompt is not cut by a clock", (0, -1)),
    "repeat_penalty": ("the name here is repetition_penalty", (1,)),
    "repeat_last_n": ("repetition_penalty looks at the whole prompt and reply", (-1,)),
    "penalize_nl": ("repetition_penalty counts line ends as other tokens", (True,)),
    "typical_p": (_SAMPLER, (1,)),
    "typ_p": (_SAMPLER, (1,)),
    "tfs_z": (_SAMPLER, (1,)),
    "top_n_sigma": (_SAMPLER, (-1,)),
    "xtc_probability": (_SAMPLER, (0,)),
    "dynatemp_range": (_SAMPLER, (0,)),
    "dry_multiplier": (_SAMPLER, (0,)),
    "mirostat": (_SAMPLER, (0,)),
    "adaptive_target": (_SAMPLER, (-1,)),
    "samplers": ("the order is fixed: temperature, top_k, top_p, min_p (docs/serve.md)", ()),
    "grammar": (_GRAMMAR, ("",)),
    "grammar_lazy": (_GRAMMAR, (False,)),
    "grammar_triggers": (_GRAMMAR, ([],)),
    "preserved_tokens": (_GRAMMAR, ([],)),
    "json_schema": ("use response_format", ()),
    "lora": ("adapters are merged into the weights", ([],)),
    "image_data": ("this model does not accept images", ([],)),
    "chat_format": (_MODEL_TEMPLATE, ()),
    "reasoning_format": ("an answer carries the reasoning apart, as reasoning_content", ("auto", "deepseek")),
    "reasoning_in_content": ("an answer carries the reasoning apart, as reasoning_content", (False,)),
    "thinking_forced_open": ("use chat_template_kwargs: {thinking: true}", (False,)),
    "parse_tool_calls": ("calls are always read", (True,)),
    "reasoning_budget": ("a thought has no budget of its own: use max_tokens or reasoning_effort: none", (-1,)),
    "reasoning_budget_tokens": ("a thought has no budget of its own: use max_tokens or reasoning_effort: none", (-1,)),
    # names that other programs have for fields of ours
    "max_new_tokens": ("the name here is max_tokens", ()),
    "max_output_tokens": ("the name here is max_tokens", ()),
    "num_return_sequences": ("the name here is n", (1,)),
    "stop_sequences": ("the name here is stop", ([],)),
    "reasoning": ("the name here is reasoning_effort", ()),
}

ROUTES: Mapping[Route, Mapping[str, Rule]] = {
    "chat": {
        "prompt": (_TEXT, ()),
        "echo": (_TEXT, (False,)),
        "add_special_tokens": (_MODEL_TEMPLATE, (False,)),
    },
    "completions": {
        "messages": (_CHAT, ()),
        "tools": (_CHAT, ([],)),
        "tool_choice": (_CHAT, ("none", "auto")),
        "parallel_tool_calls": (_CHAT, (True, False)),
        "top_logprobs": ("the name here is logprobs, a number", (0,)),
        "max_completion_tokens": ("the name here is max_tokens", ()),
        "reasoning_effort": (_CHAT, ()),
        "thinking": (_CHAT, ()),
        "chat_template_kwargs": (_CHAT, ({},)),
        "add_special_tokens": ("a text begins as the model's texts do: send token ids to choose", (True,)),
        "skip_special_tokens": ("true or false is meant", (True, False)),
    },
}

_CITED = "an answer that cites is not read back: leave it out"
_ANY: tuple[Any, ...] = (Ellipsis,)
INSIDE: Mapping[str, Mapping[str, Rule]] = {
    "messages[]": {
        "name": ("", _ANY),
        "parsed": ("", _ANY),
        "annotations": (_CITED, ([],)),
        "audio": ("this model does not accept audio", ()),
        "function_call": ("its successor is tool_calls", ()),
        "prefix": ("this model cannot continue an assistant's turn", (False,)),
    },
    "messages[].tool_calls[]": {"index": ("", _ANY)},
    "messages[].tool_calls[].function": {"parsed_arguments": ("", _ANY)},
    "tools[]": {"defer_loading": ("all tools are shown to the model at once", (False,))},
    "tools[].function": {
        "strict": ("", (True, False)),
        "defer_loading": ("all tools are shown to the model at once", (False,)),
    },
    "stream_options": {
        "include_obfuscation": ("", (True, False)),
        "continuous_usage_stats": ("the usage comes with the last event: use include_usage", (False,)),
    },
    "response_format": {"schema": ("use type json_schema", ())},
    "response_format.json_schema": {"strict": ("", (True, False)), "description": ("", _ANY)},
    "chat_template_kwargs": {"add_generation_prompt": (_MODEL_TEMPLATE, (True,))},
    "thinking": {"budget_tokens": ("a thought has no budget of its own: use max_tokens", ())},
}
"""The same within a request, by place."""
PASSAGES = frozenset(
    place[:end]
    for place in (*INSIDE, *IGNORED_INSIDE)
    for end in range(1, len(place) + 1)
    if place[end : end + 1] in ("", ".", "[")
)
"""Places on the way to these."""

TEXT_ONLY = "Send parts of type text."
_PARTS: Mapping[str, str] = {
    **dict.fromkeys(("image", "input_image"), "this model does not accept images"),
    **dict.fromkeys(("input_audio", "audio", "audio_url"), "this model does not accept audio"),
    **dict.fromkeys(("video_url", "video", "input_video"), "this model does not accept videos"),
    **dict.fromkeys(("file", "input_file"), "this model does not accept files"),
    "refusal": "a refusal is no part of a content here",
}
KINDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "messages[].content[]": (
        TEXT_ONLY,
        {kind: why for kind, why in _PARTS.items() if kind not in TYPES},  # the chat format judges those
    ),
    "messages[].tool_calls[]": ("Send calls of type function.", {"custom": "this server has no custom tools"}),
    "tools[]": ("Send tools of type function.", {"custom": "this server has no custom tools"}),
    "tool_choice": (
        "Use none, auto, required, or the name of one function.",
        {
            "allowed_tools": "this server cannot choose among some of the tools",
            "custom": "this server has no custom tools",
        },
    ),
    "response_format": (
        "Use type json_schema, or guided_regex.",
        {
            "structural_tag": "this server does not know structural tags",
            "grammar": "this server does not take grammars",
        },
    ),
}
"""Values of `type` that other servers know, by place: what is said of each, and the remedy."""


def sift(data: Mapping[str, Any], route: Route) -> tuple[dict[str, Any], set[str]]:
    """A request without what changes nothing, and the names of that; what would change the answer is an `ApiError` that says why."""
    ignored: set[str] = set()
    rules = {**TOP, **ROUTES[route]}
    rules = {name: rule for name, rule in rules.items() if name not in OUR_OWN}
    return _object(data, "", "", rules, ignored), ignored


def _object(
    data: Mapping[str, Any], place: str, path: str, rules: Mapping[str, Rule], ignored: set[str]
) -> dict[str, Any]:
    """`place` and `path`: where the object stands, without numbers and with them."""
    _check_kind(data, place, path)
    kept: dict[str, Any] = {}
    for name, value in data.items():
        reason, neutral = ("", _ANY) if not place and name in IGNORED else rules.get(name, ("", ()))
        at, to = (f"{place}.{name}", f"{path}.{name}") if place else (name, name)
        known = name in rules or (not place and name in IGNORED)
        if at in IGNORED_INSIDE:
            ignored |= {at} if value is not None else set()
            continue
        if known and value is None:
            continue
        if known and neutral != _ANY and not is_one_of(value, neutral):
            if not reason:  # of another type than it can have: the schema says so
                kept[name] = value
                continue
            raise _refused(to, reason)
        if known:
            ignored.add(at)
        if not known or (place and not reason):  # the schema knows it, and its limits
            kept[name] = _value(value, at, to, ignored)
    if data.get("parallel_tool_calls") is True and not place:
        ignored.add("parallel_tool_calls")  # what is done anyway
    return kept


def _value(value: Any, place: str, path: str, ignored: set[str]) -> Any:
    """A value with what it holds sifted, where something in it may be ignored."""
    if isinstance(value, dict) and place in PASSAGES | KINDS.keys():
        return _object(value, place, path, INSIDE.get(place, {}), ignored)
    if isinstance(value, list) and f"{place}[]" in PASSAGES:
        return [_value(item, f"{place}[]", f"{path}[{number}]", ignored) for number, item in enumerate(value)]
    return value


def _check_kind(data: Mapping[str, Any], place: str, path: str) -> None:
    remedy, kinds = KINDS.get(place, ("", {}))
    kind = data.get("type")
    if isinstance(kind, str) and kind in kinds:
        raise unsupported(path, kind, kinds[kind], remedy)


def unsupported(path: str, kind: str, reason: str, remedy: str) -> ApiError:
    """The refusal of a value of a type that other servers take."""
    return refuse(f"{reason.capitalize()}: `{path}` is of type '{kind}'. {remedy}", path, "unsupported_value")


def _refused(path: str, reason: str) -> ApiError:
    return refuse(f"`{path}` is not supported: {reason}. Leave it out.", path, "unsupported_parameter")


def is_one_of(value: Any, neutral: Iterable[Any]) -> bool:
    """Whether a value is among those; True == 1 in Python, so types count, but 0 and 0.0 ask for the same."""
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in neutral)
