"""The command `rorqual chat RUN`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rorqual.cli.machine import available_cores
from rorqual.cli.settings import WHERE, Settings, check_device, parse_settings, split_pairs
from rorqual.core.config import parse_config
from rorqual.core.errors import DataError
from rorqual.core.example_prompts import is_unlike_prompts
from rorqual.core.records import RunDir, TaskDefaults


def chat(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or folder of rorqual teach.")],
    settings: Settings = None,
) -> None:
    """Chat with a run's model in the terminal. Reasoning is dimmed.

    A run that was trained for one task may have a file defaults.json. The replies then follow the file's grammar, and the
    file's thinking, max_tokens and temperature replace the defaults below. If the file sets calculator, the engine
    calculates.

    A run with defaults.json, or a run that was trained on generated problems, answers each message alone, as in its
    training. For all other runs, /new starts a new conversation. /quit exits. With piped input, each line is one
    message.

    In a folder that `rorqual teach` wrote, what it chose answers each message alone. The answer's probability and rung follow. If
    the answer is not sure enough for the promise, the reason stands in its place.
    """
    import torch

    from rorqual.cli.conversation import ChatSettings, Conversation, answer_lines
    from rorqual.cli.terminal import Terminal, read_input_lines
    from rorqual.engine.engine import Engine
    from rorqual.teach.paths import has_answerer

    if has_answerer(run):
        answer_lines(run, parse_settings(ChatSettings, settings), Terminal())
        return
    task = RunDir(run).task_defaults()
    defaults = task.model_dump(include={"thinking", "max_tokens", "temperature"}, exclude_none=True)
    chosen = parse_config(ChatSettings, defaults | split_pairs(settings), where=WHERE)
    check_device(chosen.device)
    if chosen.threads:  # the engine runs in this thread, so it uses torch's thread count
        torch.set_num_threads(chosen.threads)
    engine = Engine(
        run,
        device=chosen.device,
        dtype=chosen.dtype,
        slots=1,
        threads=chosen.threads or available_cores(),
        backend=chosen.backend,
    )
    conversation, terminal = Conversation(engine, chosen, task), Terminal()
    prompts = RunDir(run).example_prompts()
    alone = bool(prompts) or task != TaskDefaults()
    if sys.stdin.isatty():
        if prompts:
            terminal.print_note(f"examples of what this run was trained on: {'; '.join(prompts[:2])}")
        if alone:
            terminal.print_note("this run was trained for one task: each message is answered alone; /quit exits")
    for text in read_input_lines():
        if text == "/new" or alone:
            conversation.history = []
        if text == "/new":
            continue
        if is_unlike_prompts(text, prompts):
            terminal.print_note(
                f"this looks like nothing that the run was trained on, such as: {'; '.join(prompts[:2])}"
            )
        try:
            conversation.say(text, terminal)
        except DataError as error:
            if not sys.stdin.isatty():
                raise
            terminal.print_note(str(error))
        terminal.end_reply()
