"""What a request to an address says beyond messages and the ordinary parameters."""

from __future__ import annotations

import json
from typing import Any

from rorqual.core.errors import DataError
from rorqual.engine.request import Grammar, SamplingParams


def further(params: SamplingParams) -> dict[str, Any]:
    """What is asked beyond the ordinary, under the names that OpenAI's API, or vLLM's and SGLang's beside it, have for it."""
    default, found = SamplingParams(), dict[str, Any]()
    for name in (
        "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos", "min_tokens", "min_p_first",
        "prompt_logprobs",
    ):  # fmt: skip
        if getattr(params, name) != getattr(default, name):
            found[name] = getattr(params, name)
    if params.logit_bias:
        found["logit_bias"] = {str(token): bias for token, bias in params.logit_bias}
    for name in ("stop", "stop_token_ids"):
        if given := getattr(params, name):
            found[name] = list(given)
    if params.top_logprobs:
        found |= {"logprobs": True, "top_logprobs": params.top_logprobs}
    return found | (_grammar(params.grammar) if params.grammar else {})


def _grammar(grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "calls":
        raise DataError(
            "a request to an address carries no tools, so that none can be called",
            where="grammar",
            remedy="Ask for JSON by the function's schema: kind json_schema.",
        )
    if grammar.kind == "json":
        return {"response_format": {"type": "json_object"}}
    if grammar.kind == "regex":
        return {"guided_regex": grammar.source}
    try:
        source = json.loads(grammar.source)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where="grammar", remedy="Write its source as JSON.") from None
    if grammar.kind == "choice":
        return {"guided_choice": source}
    schema = {"name": "reply", "schema": source, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
