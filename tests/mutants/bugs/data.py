"""Bugs in `data`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "the end of the turn is not trained",
        "slime#514",
        "data/chat/turns.py",
        "*[False] * len(given), *[trained] * len(reply)])",
        "*[False] * len(given), *[trained] * (len(reply) - 1), False])",
        "tests/train/test_data_in_training.py::test_the_end_of_the_turn_is_trained",
    ),
    one(
        "thinking that the prompt opened is read as the answer",
        "vllm#13125",
        "data/chat/block.py",
        '"thought" if self.choice(thinking) else "late"',
        '"late"',
        "tests/data/chat/test_laws.py::test_a_thought_that_the_prompt_opened_is_read_from_inside",
    ),
    one(
        "earlier turns are trained without the block that they were written with",
        "nanochat#582, Qwen3's template",
        "data/chat/block.py",
        "    def as_written(self, message: Message) -> bool:\n        return False\n",
        "    def as_written(self, message: Message) -> bool:\n        return True\n",
        "tests/data/chat/test_laws.py::test_an_earlier_turn_is_not_trained_where_its_block_is_missing",
    ),
    one(
        "what a user types is encoded with the special tokens",
        "template injection",
        "data/chat/chatml.py",
        'self.tokenizer.encode(f"{message.role}\\n{message.content}")',
        'self.tokenizer.encode_trusted(f"{message.role}\\n{message.content}")',
        "tests/data/chat/test_laws.py::test_what_is_typed_never_becomes_a_special_token",
    ),
    one(
        "the role and what is said are encoded apart",
        "ids that differ from the published template's",
        "data/chat/llama3.py",
        '*encode("\\n\\n" + content)',
        '*encode("\\n"), *encode("\\n"), *encode(content)',
        "tests/data/chat/test_golden.py::test_ids_are_those_of_the_published_template",
    ),
    one(
        "a call that a thought ended with is lost",
        "vllm#45603",
        "data/chat/reply.py",
        "tail = 0 if _says_anything(answer, calls) else _calls_at_end(thought, calls)",
        "tail = 0",
        "tests/data/chat/test_tool_replies.py::test_a_reply_is_read_as_its_rule_says",
    ),
    one(
        "a call that is quoted in a thought is made",
        "vllm#45603, its other side",
        "data/chat/reply.py",
        "tail = 0 if _says_anything(answer, calls) else _calls_at_end(thought, calls)",
        "tail = _calls_at_end(thought, calls)",
        "tests/data/chat/test_tool_replies.py::test_a_reply_is_read_as_its_rule_says",
    ),
    one(
        "half a mark is shown before it is whole",
        "marks that leak into a streamed answer",
        "data/chat/marks.py",
        "        return len(tail) if tail and any(name.startswith(tail) for name in self.by_text) else 0",
        "        return 0",
        "tests/data/chat/test_tool_replies.py::test_a_reply_is_read_as_its_rule_says",
    ),
    one(
        "a name that was not offered is called",
        "calls of tools that a client does not have",
        "data/chat/calls.py",
        "return (name, text) if name in names and _object(text) is not None else None",
        "return (name, text) if _object(text) is not None else None",
        "tests/data/chat/test_tool_replies.py::test_a_reply_is_read_as_its_rule_says",
    ),
    one(
        "answers of tools stand as they came, not as they were asked for",
        "templates write no ids",
        "data/chat/tools.py",
        '    return sorted(turn, key=lambda message: place[message.tool_call_id or ""])',
        "    return turn",
        "tests/data/chat/test_tool_prompts.py::test_answers_stand_in_the_order_of_the_calls",
    ),
    one(
        "a long text is encoded under the interpreter's lock",
        "issue 14: everybody's stream waited for one prompt",
        "data/tokenizer.py",
        "    if len(text) < LONG:\n",
        "    if built:\n",
        "tests/data/test_tokenizer.py::test_a_long_text_has_the_ids_of_the_library_and_holds_up_no_other_thread",
    ),
)
