"""Fields of the APIs of OpenAI, vLLM and llama.cpp that this server does not implement.

A field is ignored if its value would not change the reply; otherwise the field is refused with a reason. Fields are
identified by paths without list indices. `messages[].content[]` stands for the content parts of every message, and "" stands
for the request itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from rorqual.core.content_parts import TYPES
from rorqual.core.sampling import PARAMS
from rorqual.serve.errors import ApiError, bad_request

Rule = tuple[str, tuple[Any, ...]]
"""(reason, values): why a request field is refused, and the values for which the field is ignored instead."""
Route = Literal["chat", "completions"]

OWN_NAMES = ("top_logprobs", "grammar")
"""Sampling parameters whose field in OpenAI's API has another name (logprobs, response_format). Every other sampling
parameter has a request field of the same name."""
OUR_OWN = frozenset(PARAMS) - {*OWN_NAMES}
"""Request fields that are sampling parameters of this server. The rules for unsupported fields below do not apply to
the sampling parameters in `OUR_OWN`."""

IGNORED = frozenset(
    # OpenAI: bookkeeping, billing and cache hints.
    {"user", "metadata", "store", "safety_identifier", "service_tier"}
    | {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"}
    # vLLM: a request id, hints for the cache and the grammar backend, and options of features that this server lacks, such as beam search.
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
    # llama.cpp: options of slots, the cache, context shifting and speculative decoding, and parameters of samplers.
    # Other fields enable these samplers.
    | {"cache_prompt", "id_slot", "slot_id", "n_cache_reuse", "n_keep", "n_discard", "backend_sampling"}
    | {f"speculative.{name}" for name in ("n_max", "n_min", "p_min", "type")}
    | {f"speculative.ngram_{name}" for name in ("size_n", "size_m", "m_hits")}
    | {"xtc_threshold", "dynatemp_exponent", "mirostat_tau", "mirostat_eta", "adaptive_decay"}
    | {"dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"}
) - {*OUR_OWN}
"""Top-level request fields that are always ignored, because these fields never change a reply."""

_MODEL_TEMPLATE = "the server always uses the model's own chat template"
_NO_IMAGES = "this model reads and writes only text"
_SAMPLER = "this sampler is not implemented; use temperature, top_p, top_k or min_p"
_GRAMMAR = "use response_format, guided_json, guided_regex or guided_choice"
_CHAT = "it is a field of /v1/chat/completions"
_TEXT = "it is a field of /v1/completions"

TOP: Mapping[str, Rule] = {
    # OpenAI
    "functions": ("use tools, which replaced it", ([],)),
    "function_call": ("use tool_choice, which replaced it", ("none", "auto")),
    "modalities": (_NO_IMAGES, (["text"],)),
    "audio": (_NO_IMAGES, ()),
    "prediction": ("predicted outputs are not implemented", ()),
    "web_search_options": ("this server has no web search", ()),
    "moderation": ("this server has no moderation", ()),
    "verbosity": ("this model has no such setting; state the length you want in a message", ("medium",)),
    "best_of": ("use n, and choose among the replies yourself", (1,)),
    "suffix": ("this model cannot fill in the middle", ("",)),
    # vLLM
    "use_beam_search": ("beam search is not implemented", (False,)),
    "include_stop_str_in_output": ("the reply always ends before its stop string", (False,)),
    "skip_special_tokens": ("special tokens of the chat format are parsed and never shown", (True,)),
    "truncate_prompt_tokens": ("prompts are never truncated; send fewer messages or a shorter text", (-1,)),
    "allowed_token_ids": ("use logit_bias or guided_choice", ()),
    "bad_words": ("use logit_bias with -100 for each token", ([],)),
    "add_generation_prompt": (_MODEL_TEMPLATE, (True,)),
    "continue_final_message": ("this model cannot continue an assistant turn", (False,)),
    "documents": ("put their text into a message", ([],)),
    "chat_template": (_MODEL_TEMPLATE, ()),
    "structured_outputs": (_GRAMMAR, ()),
    "guided_grammar": (_GRAMMAR, ("",)),
    "guided_whitespace_pattern": ("the model chooses the whitespace in JSON", ()),
    "return_tokens_as_token_ids": ("tokens are returned as text, with their bytes", (False,)),
    "return_token_ids": ("responses have no token ids", (False,)),
    "return_prompt_text": ("responses do not include the prompt", (False,)),
    "kv_transfer_params": ("this server cannot transfer its cache", ({},)),
    "ec_transfer_params": ("this server cannot transfer its cache", ({},)),
    "vllm_xargs": ("this server has no extensions", ({},)),
    "repetition_detection": ("use repetition_penalty, stop or max_tokens", ()),
    "thinking_token_budget": ("use think_budget", (-1,)),
    "include_reasoning": ("responses always have the reasoning in reasoning_content", (True,)),
    "logits_processors": ("logits processors cannot be installed", ([],)),
    "prompt_embeds": ("a prompt must be text or token ids", ()),
    "logprob_token_ids": ("use logprobs", ()),
    # llama.cpp
    "n_predict": ("use max_tokens", (-1,)),
    "n_cmpl": ("use n", (1,)),
    "n_probs": ("use logprobs", (0,)),
    "min_keep": (_SAMPLER, (0,)),
    "post_sampling_probs": ("use logprobs, which are always computed after applying the sampling parameters", (False,)),
    "return_tokens": ("responses have no token ids", (False,)),
    "return_progress": ("streams report no progress", (False,)),
    "timings_per_token": ("responses have no timings; see /metrics", (False,)),
    "response_fields": ("responses always have the fields of OpenAI's API", ([],)),
    "n_indent": ("indentation cannot end a reply", (0,)),
    "t_max_predict_ms": ("a reply has no time limit; use max_tokens", (0, -1)),
    "t_max_prompt_ms": ("a prompt has no time limit", (0, -1)),
    "repeat_penalty": ("use repetition_penalty", (1,)),
    "repeat_last_n": ("repetition_penalty covers the whole prompt and reply", (-1,)),
    "penalize_nl": ("repetition_penalty treats newlines as any other token", (True,)),
    "typical_p": (_SAMPLER, (1,)),
    "typ_p": (_SAMPLER, (1,)),
    "tfs_z": (_SAMPLER, (1,)),
    "top_n_sigma": (_SAMPLER, (-1,)),
    "xtc_probability": (_SAMPLER, (0,)),
    "dynatemp_range": (_SAMPLER, (0,)),
    "dry_multiplier": (_SAMPLER, (0,)),
    "mirostat": (_SAMPLER, (0,)),
    "adaptive_target": (_SAMPLER, (-1,)),
    "samplers": ("the order is fixed to temperature, top_k, top_p, min_p (docs/how-to/serve.md)", ()),
    "grammar": (_GRAMMAR, ("",)),
    "grammar_lazy": (_GRAMMAR, (False,)),
    "grammar_triggers": (_GRAMMAR, ([],)),
    "preserved_tokens": (_GRAMMAR, ([],)),
    "json_schema": ("use response_format", ()),
    "lora": ("adapters are merged into the weights", ([],)),
    "image_data": ("this model does not accept images", ([],)),
    "chat_format": (_MODEL_TEMPLATE, ()),
    "reasoning_format": ("responses always have the reasoning in reasoning_content", ("auto", "deepseek")),
    "reasoning_in_content": ("responses always have the reasoning in reasoning_content", (False,)),
    "thinking_forced_open": ("use chat_template_kwargs: {thinking: true}", (False,)),
    "parse_tool_calls": ("tool calls are always parsed", (True,)),
    "reasoning_budget": ("use think_budget", (-1,)),
    "reasoning_budget_tokens": ("use think_budget", (-1,)),
    # Names that other servers and clients use for fields of this server.
    "max_new_tokens": ("use max_tokens", ()),
    "max_output_tokens": ("use max_tokens", ()),
    "num_return_sequences": ("use n", (1,)),
    "stop_sequences": ("use stop", ([],)),
    "reasoning": ("use reasoning_effort", ()),
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
        "top_logprobs": ("use logprobs, an integer here", (0,)),
        "max_completion_tokens": ("use max_tokens", ()),
        "reasoning_effort": (_CHAT, ()),
        "thinking": (_CHAT, ()),
        "chat_template_kwargs": (_CHAT, ({},)),
        "add_special_tokens": (
            "a text prompt starts with the model's BOS token, if it has one; send token ids to avoid it",
            (True,),
        ),
        "skip_special_tokens": ("it must be true or false", (True, False)),
    },
}

_CITED = "citations of earlier replies are not supported"
_ANY: tuple[Any, ...] = (Ellipsis,)
NESTED_FIELD_RULES: Mapping[str, Mapping[str, Rule]] = {
    "messages[]": {
        "name": ("", _ANY),
        "parsed": ("", _ANY),
        "annotations": (_CITED, ([],)),
        "audio": ("this model does not accept audio", ()),
        "function_call": ("use tool_calls, which replaced it", ()),
        "prefix": ("this model cannot continue an assistant turn", (False,)),
    },
    "messages[].content[]": {"prompt_cache_breakpoint": ("prefixes are always cached", _ANY)},
    "messages[].tool_calls[]": {"index": ("", _ANY)},
    "messages[].tool_calls[].function": {"parsed_arguments": ("", _ANY)},
    "tools[]": {"defer_loading": ("the prompt always contains all tools", (False,))},
    "tools[].function": {
        "strict": ("", (True, False)),
        "defer_loading": ("the prompt always contains all tools", (False,)),
    },
    "stream_options": {
        "include_obfuscation": ("", (True, False)),
        "continuous_usage_stats": ("only the last event has the usage; use include_usage", (False,)),
    },
    "response_format": {"schema": ("use type json_schema", ())},
    "response_format.json_schema": {"strict": ("", (True, False)), "description": ("", _ANY)},
    "chat_template_kwargs": {"add_generation_prompt": (_MODEL_TEMPLATE, (True,))},
    "thinking": {"budget_tokens": ("reasoning has no separate budget; use max_tokens", ())},
}
"""Rules of nested fields, by the path of the enclosing object. A rule with an empty reason only lists values to ignore; the
request schema checks all other values of the field."""
PATHS_TO_RULES = frozenset(
    place[:end]
    for place in NESTED_FIELD_RULES
    for end in range(1, len(place) + 1)
    if place[end : end + 1] in ("", ".", "[")
)
"""All prefixes of the paths in `NESTED_FIELD_RULES`. Only objects and lists at the paths in `PATHS_TO_RULES` can
contain fields with rules."""

TEXT_ONLY = "Send parts of type text."
_PARTS: Mapping[str, str] = {
    **dict.fromkeys(("image", "input_image"), "this model does not accept images"),
    **dict.fromkeys(("input_audio", "audio", "audio_url"), "this model does not accept audio"),
    **dict.fromkeys(("video_url", "video", "input_video"), "this model does not accept videos"),
    **dict.fromkeys(("file", "input_file"), "this model does not accept files"),
    "refusal": "a refusal cannot be a content part here",
}
KINDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "messages[].content[]": (
        TEXT_ONLY,
        {kind: why for kind, why in _PARTS.items() if kind not in TYPES},  # the chat format checks part types in TYPES
    ),
    "messages[].tool_calls[]": ("Send calls of type function.", {"custom": "this server has no custom tools"}),
    "tools[]": ("Send tools of type function.", {"custom": "this server has no custom tools"}),
    "tool_choice": (
        "Use none, auto, required, or the name of one function.",
        {
            "allowed_tools": "this server cannot restrict a call to some of the tools",
            "custom": "this server has no custom tools",
        },
    ),
    "response_format": (
        "Use type json_schema, or guided_regex.",
        {
            "structural_tag": "this server has no structural tags",
            "grammar": "this server does not accept grammars",
        },
    ),
}
"""(remedy, reasons) for unsupported types of an object, by the object's path. `reasons` has the `type` values that only other
servers accept, each with the reason why this server refuses it."""


def drop_ignored_fields(data: Mapping[str, Any], route: Route) -> tuple[dict[str, Any], set[str]]:
    """Remove ignored fields from a request. Return the remaining request and the names of the ignored fields.

    Raises ApiError if the request has an unsupported field whose value would change the reply.
    """
    ignored: set[str] = set()
    rules = {**TOP, **ROUTES[route], **dict.fromkeys(IGNORED, ("", _ANY))}
    rules = {name: rule for name, rule in rules.items() if name not in OUR_OWN}
    return _drop_in_object(data, "", "", rules, ignored), ignored


def _drop_in_object(
    data: Mapping[str, Any], place: str, path: str, rules: Mapping[str, Rule], ignored: set[str]
) -> dict[str, Any]:
    """Remove ignored fields from one object in a request. `place`: the object's path without list indices. `path`: the
    object's path with list indices."""
    _check_type_field(data, place, path)
    remaining: dict[str, Any] = {}
    for name, value in data.items():
        place_of_field, path_of_field = (f"{place}.{name}", f"{path}.{name}") if place else (name, name)
        if name not in rules:
            remaining[name] = _drop_in_value(value, place_of_field, path_of_field, ignored)
        elif value is not None:
            reason, neutral = rules[name]
            is_neutral = neutral == _ANY or is_neutral_value(value, neutral)
            if reason and not is_neutral:
                raise _unsupported_field_error(path_of_field, reason)
            if is_neutral:
                ignored.add(place_of_field)
            if place and not reason:  # the request schema defines and checks this field
                remaining[name] = value
    if data.get("parallel_tool_calls") is True and not place:
        ignored.add("parallel_tool_calls")  # ignored because true is the default
    return remaining


def _drop_in_value(value: Any, place: str, path: str, ignored: set[str]) -> Any:
    """Remove ignored fields from all objects inside `value` for which rules exist."""
    if isinstance(value, dict) and place in PATHS_TO_RULES | KINDS.keys():
        return _drop_in_object(value, place, path, NESTED_FIELD_RULES.get(place, {}), ignored)
    if isinstance(value, list) and f"{place}[]" in PATHS_TO_RULES:
        return [_drop_in_value(item, f"{place}[]", f"{path}[{number}]", ignored) for number, item in enumerate(value)]
    return value


def _check_type_field(data: Mapping[str, Any], place: str, path: str) -> None:
    remedy, kinds = KINDS.get(place, ("", {}))
    kind = data.get("type")
    if isinstance(kind, str) and kind in kinds:
        raise unsupported_type(path, kind, kinds[kind], remedy)


def unsupported_type(path: str, kind: str, reason: str, remedy: str) -> ApiError:
    """Return the error for a `type` that other servers accept but this server does not."""
    return bad_request(f"{reason.capitalize()}: `{path}` is of type '{kind}'. {remedy}", path, "unsupported_value")


def _unsupported_field_error(path: str, reason: str) -> ApiError:
    return bad_request(f"`{path}` is not supported: {reason}. Leave this field out.", path, "unsupported_parameter")


def is_neutral_value(value: Any, neutral: Iterable[Any]) -> bool:
    """Return whether `value` is in `neutral`. Unlike with `==`, True and 1 differ; 0 and 0.0 are equal."""
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in neutral)
