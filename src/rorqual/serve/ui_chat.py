"""The chat page's Gradio interface. The session state stores the conversation as raw text. Formulas are converted only
in the messages that the browser displays.

Gradio runs the event handlers of a session concurrently, so their updates can overlap. When a handler ends, Gradio
sends the handler's last update a second time. Therefore this module runs the events of a session one after another.
After all other updates of an event, an update that changes nothing ends the event. The session state is a list. The
running event changes this list in place.

Gradio evaluates the annotations of handlers, but this module imports Gradio only when it builds the page. Therefore this
file does not use `from __future__ import annotations`.
"""

import asyncio
import gc
import html
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp

from rorqual.core.prompts import unlike
from rorqual.serve.errors import ApiError
from rorqual.serve.ui_client import chunks
from rorqual.serve.ui_turn import Row, Turn, Wanted, corrected, pictured, question, upto_question

FILES = Path(__file__).parent / "page"
TICK = 0.1
"""Seconds between two updates of the page while a reply is generated."""
SETTLED = 0.4
"""Seconds between an event's last update with content and the empty update that ends the event.

Without this pause, the buttons of the input box had the wrong state in one of ten tries under load. The reason: before
Gradio's frontend renders the last update with content, it applies the empty update to the same object."""
FORMULAS = [("\\[", "\\]", True), ("\\(", "\\)", False)]
"""Formula delimiters (left, right, display). `ui_math` converts dollar delimiters to the delimiters in this list."""
Pictures = AsyncGenerator[tuple[Any, ...], None]
"""A stream of updates of the page's components."""
UNLIKE = " This prompt looks like nothing that the model was trained on."
SECOND = " The model was trained on conversations with one question. Start a new chat for the next question."
IDLE = "Enter sends, Shift+Enter starts a new line."


class Mounted:
    """Gradio's ASGI application, built on first use because building it takes seconds and about 100 MB of memory."""

    def __init__(self, api: ASGIApp, model: str, temperature: float, thinks: bool, prompts: Sequence[str] = ()) -> None:
        self._build = partial(build, api, model, temperature, thinks, prompts)
        self._closing = asyncio.Event()
        self._ready: asyncio.Future[ASGIApp] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._blocks: Any = None

    async def app(self) -> ASGIApp:
        """Return the application. The first call builds the application; concurrent calls wait until the application is
        ready."""
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._keeper = asyncio.create_task(self._run(self._ready))
        return await asyncio.shield(self._ready)

    def close(self) -> None:
        """Stop the application's background tasks."""
        self._closing.set()

    def forget(self, session: str) -> None:
        """Delete Gradio's state of a session."""
        if self._blocks is not None:
            holder, queue = self._blocks.state_holder, self._blocks._queue
            for table in (holder.session_data, holder.time_last_used):
                table.pop(session, None)
            if not queue.pending_event_ids_session.get(session):
                for table in (queue.pending_event_ids_session, queue.pending_messages_per_session):
                    table.pop(session, None)

    async def _run(self, ready: asyncio.Future[ASGIApp]) -> None:
        try:
            parent, self._blocks = await asyncio.to_thread(self._build)
        except Exception as error:
            ready.set_exception(error)  # log the error, and raise it in all callers of `app`
            raise
        gc.freeze()  # exclude Gradio's permanent objects from garbage collection
        async with parent.router.lifespan_context(parent):
            ready.set_result(parent)
            await self._closing.wait()


def build(
    api: ASGIApp, model: str, temperature: float, thinks: bool, prompts: Sequence[str] = ()
) -> tuple[FastAPI, Any]:
    """Build the page and return (application, Gradio blocks). Gradio must be installed.

    `temperature`: initial temperature. `thinks`: whether to show the thinking switch. `prompts`: example
    prompts from the problems that the model was trained on.
    """
    # Gradio reads GRADIO_ANALYTICS_ENABLED when it is imported and before it sends analytics.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    mono = ("ui-monospace", "Consolas", "monospace")
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=mono)
    blocks = _blocks(gr, Chat(gr, api, model, prompts), temperature, thinks)
    parent = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None), blocks, path="/",
        auth_dependency=_tenant, theme=theme, css_paths=[FILES / "chat.css"],
        head=f"<script>{(FILES / 'chat.js').read_text(encoding='utf-8')}</script>",
        footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, pwa=False, enable_monitoring=False,
        allowed_paths=[], blocked_paths=["/"], max_file_size=1,
    )  # fmt: skip
    return parent, blocks


def _tenant(request: HttpRequest) -> str | None:
    tenant: str | None = request.scope.get("state", {}).get("tenant")
    return tenant


class PageEvent:
    """A running or waiting user event of a session. `replaced`: a newer event exists, so this event sends no more updates.

    `heirs`: later events that were closed while they waited for this event. The `heirs` count as finished only when
    this event ends, so that the events after the `heirs` wait for this event.
    """

    def __init__(self) -> None:
        self.stopped, self.over = asyncio.Event(), asyncio.Event()
        self.replaced = False
        self.heirs: list[PageEvent] = []

    def end(self) -> None:
        """Mark the event as finished, so that the next event starts."""
        self.over.set()
        for heir in self.heirs:
            heir.end()


class Chat:
    """The page's event handlers, which yield updates of four components: chat, conversation, input box, status.

    `conversation` is the session's list of rows. Only the running event reads or changes this list.
    """

    def __init__(self, gr: Any, api: ASGIApp, model: str, prompts: Sequence[str] = ()) -> None:
        self.gr, self.api, self.model, self.prompts = gr, api, model, prompts
        self._events: dict[str, PageEvent] = {}

    def stop(self, session: str) -> None:
        """Stop the running reply of a session, if any."""
        if (event := self._events.get(session)) is not None:
            event.stopped.set()

    async def reply(
        self, conversation: list[Row], ask: Callable[[list[Row]], list[Row]], wanted: Wanted, tenant: str, session: str
    ) -> Pictures:
        """Generate a reply and yield updates.

        `ask` returns the conversation. The conversation's last row is the question to answer. If `ask` returns no rows,
        no request is sent.
        """
        async with self._turn(session) as event:
            rows = [] if event.replaced else ask(conversation)
            if rows:
                before = pictured(rows)
                async with aclosing(self._reply(event, rows, wanted, tenant)) as pictures:
                    async for now, box, status in pictures:
                        conversation[:] = now
                        yield [*before[: len(now)], *pictured(now[len(rows) :])], conversation, box, status
                await asyncio.sleep(SETTLED)
            yield self._unchanged()

    async def clear(self, conversation: list[Row], session: str) -> Pictures:
        """Clear the conversation of a session."""
        async with self._turn(session):
            conversation.clear()
            yield [], conversation, self.gr.Textbox(value="", submit_btn=True, stop_btn=False), _status(IDLE)
            await asyncio.sleep(SETTLED)
            yield self._unchanged()

    @asynccontextmanager
    async def _turn(self, session: str) -> AsyncIterator[PageEvent]:
        """Wait until the previous event of the session has sent its last update. Then run the `with` block as the
        current event.

        The wait needs no timeout, because Gradio always resumes or closes the previous event's generator.
        """
        previous, event = self._events.get(session), PageEvent()
        self._events[session] = event
        try:
            if previous is not None:
                previous.replaced = True
                previous.stopped.set()
                await previous.over.wait()
            yield event
        finally:
            if previous is not None and not previous.over.is_set():
                previous.heirs.append(event)
            else:
                event.end()
            latest = self._events.get(session)
            if latest is not None and latest.over.is_set():
                del self._events[session]

    async def _reply(self, event: PageEvent, rows: list[Row], wanted: Wanted, tenant: str) -> Pictures:
        """Yield (rows, input box, status) until the reply ends or a newer event replaces this event."""
        turn = Turn()
        consuming = asyncio.create_task(self._consume(turn, wanted.body(self.model, rows), tenant))
        stopping = asyncio.create_task(event.stopped.wait())
        try:
            yield rows, self.gr.Textbox(value="", submit_btn=False, stop_btn=True), _status("Waiting. Esc stops.")
            while not consuming.done() and not event.stopped.is_set():
                await asyncio.wait((consuming, stopping), timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
                if not event.replaced:
                    yield [*rows, *turn.rows()], self.gr.skip(), _status(f"{turn.phase}. Esc stops.")
        finally:
            stopping.cancel()
            consuming.cancel()
            [outcome, _] = await asyncio.gather(consuming, stopping, return_exceptions=True)
        if event.replaced:
            return
        turn.stop()
        yield self._end(rows, turn, outcome, stopped=event.stopped.is_set())
        if isinstance(outcome, Exception) and not isinstance(outcome, ApiError):
            raise outcome  # an unexpected error, which Gradio logs and shows

    def _unchanged(self) -> tuple[Any, ...]:
        """Return an update that changes nothing.

        Every event ends with this update, because Gradio may send the last update again when the next event has already
        started.
        """
        return (self.gr.skip(),) * 4

    def _end(self, rows: Sequence[Row], turn: Turn, outcome: object, *, stopped: bool) -> tuple[Any, ...]:
        """Return the last update of a reply. If the request failed before any text, the question returns to the input box."""
        box = {"submit_btn": True, "stop_btn": False}
        now = [*rows, *turn.rows()]
        if isinstance(outcome, ApiError):
            if turn.empty:
                now, box["value"] = now[:-1], now[-1]["content"]
            return now, self.gr.Textbox(**box), _status(f"{_explained(outcome)}", error=True)
        if len(rows) > 1:
            note = SECOND if self.prompts else ""
        else:
            note = UNLIKE if unlike(str(rows[0]["content"]), self.prompts) else ""
        return now, self.gr.Textbox(**box), _status(turn.summary(stopped=stopped) + note)

    async def _consume(self, turn: Turn, body: dict[str, Any], tenant: str) -> None:
        async with aclosing(chunks(self.api, tenant, body)) as stream:
            async for chunk in stream:
                if chunk is not None:
                    turn.add(chunk)


def _invitation(chat: Chat) -> str:
    """Return the HTML text shown for an empty conversation, with up to two example prompts from the model's
    training."""
    examples = " or ".join(f"<code>{html.escape(prompt)}</code>" for prompt in chat.prompts[:2])
    return f"Ask {html.escape(chat.model)} something{', for example ' + examples if examples else ''}."


def _explained(error: ApiError) -> str:
    text = error.message[:1].upper() + error.message[1:]
    return f"{text.rstrip('.')}. (error {error.status})"


def _status(text: str, *, error: bool = False) -> str:
    return f'<p class="status{" error" if error else ""}">{html.escape(text)}</p>'


def _blocks(gr: Any, chat: Chat, temperature: float, thinks: bool) -> Any:
    with gr.Blocks(title=chat.model, fill_height=True, analytics_enabled=False) as blocks:
        head = (FILES / "head.html").read_text(encoding="utf-8").replace("{model}", html.escape(chat.model))
        gr.Markdown(head, elem_id="head", sanitize_html=False, latex_delimiters=[])  # gr.HTML needs `eval`
        rows = gr.State([])
        shown = gr.Chatbot(
            label="Conversation", show_label=False, container=False, scale=1, height=None, min_height=160, elem_id="chat",
            layout="bubble", buttons=["copy"], editable="user", feedback_options=None, group_consecutive_messages=True,
            latex_delimiters=[{"left": left, "right": right, "display": display} for left, right, display in FORMULAS],
            placeholder=_invitation(chat), sanitize_html=True,
        )  # fmt: skip
        with gr.Row(elem_id="actions", equal_height=True):
            status = gr.Markdown(_status(IDLE), elem_id="status", latex_delimiters=[])
            retry = gr.Button("Retry", size="sm", scale=0, min_width=88)
            clear = gr.Button("New chat", size="sm", scale=0, min_width=88)
        box = gr.Textbox(
            label="Message", show_label=False, container=False, lines=1, max_lines=6, placeholder="Message", autofocus=True,
            submit_btn=True, stop_btn=False, elem_id="message", html_attributes=gr.InputHTMLAttributes(enterkeyhint="send"),
        )  # fmt: skip
        with gr.Accordion("Settings", open=False, elem_id="settings"), gr.Row():
            thinking = gr.Radio(["auto", "on", "off"], value="auto", label="Thinking", min_width=200, visible=thinks)
            temperature_box = gr.Slider(0, 2, value=temperature, step=0.05, label="Temperature", min_width=200)
            max_tokens = gr.Number(
                0, label="Max tokens (0: no limit)", minimum=0, maximum=2**31 - 1, precision=0, min_width=200
            )
        blocks.unload(
            _wire(gr, chat, (shown, rows, box, status), [thinking, temperature_box, max_tokens], retry, clear)
        )
    return blocks


def _wire(gr: Any, chat: Chat, parts: Sequence[Any], settings: Sequence[Any], retry: Any, clear: Any) -> Any:
    """Connect the page's events to their handlers. Return the handler to run when the page is closed."""
    shown, rows, box, _ = parts

    def wanted(thinking: Any, temperature: float, max_tokens: float) -> Wanted:
        return Wanted(thinking, temperature, int(max_tokens or 0))

    async def ask(
        text: str, conversation: list[Row], thinking: str, temperature: float, max_tokens: float, request: gr.Request
    ) -> Pictures:
        if not text.strip():
            return
        options = wanted(thinking, temperature, max_tokens), request.username, request.session_hash
        async with aclosing(chat.reply(conversation, lambda rows: [*rows, question(text)], *options)) as updates:
            async for update in updates:
                yield update

    async def retry_last(
        conversation: list[Row], thinking: str, temperature: float, max_tokens: float, request: gr.Request
    ) -> Pictures:
        options = wanted(thinking, temperature, max_tokens), request.username, request.session_hash
        async with aclosing(chat.reply(conversation, upto_question, *options)) as updates:
            async for update in updates:
                yield update

    async def edit_question(
        conversation: list[Row],
        thinking: str,
        temperature: float,
        max_tokens: float,
        edit: gr.EditData,
        request: gr.Request,
    ) -> Pictures:
        options = wanted(thinking, temperature, max_tokens), request.username, request.session_hash
        async with aclosing(
            chat.reply(conversation, partial(corrected, place=int(edit.index), value=edit.value), *options)
        ) as updates:
            async for update in updates:
                yield update

    async def new_chat(conversation: list[Row], request: gr.Request) -> Pictures:
        async with aclosing(chat.clear(conversation, request.session_hash)) as updates:
            async for update in updates:
                yield update

    async def stop(request: gr.Request) -> None:
        # This handler must be async, because Gradio runs plain functions in threads, and asyncio events are not thread-safe.
        chat.stop(request.session_hash)

    common: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    running = {"outputs": list(parts), **common}
    # Gradio ignores a second Enter, so the same text is not sent twice. A second Retry replaces the first Retry.
    box.submit(ask, [box, rows, *settings], trigger_mode="once", **running)
    retry.click(retry_last, [rows, *settings], trigger_mode="multiple", **running)
    shown.retry(retry_last, [rows, *settings], trigger_mode="multiple", **running)
    shown.edit(edit_question, [rows, *settings], trigger_mode="multiple", **running)
    box.stop(stop, **common)
    clear.click(new_chat, [rows], list(parts), **common)
    return stop
