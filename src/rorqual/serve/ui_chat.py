"""The chat page's Gradio interface. The session state holds the conversation as raw text; the browser gets rendered rows.

Gradio runs a session's event handlers concurrently. An update of one may still be in transit while another makes the next,
and when a handler ends, Gradio sends its last update again. Therefore the events of a session run one after another. An event
ends only after its last update was sent, and that update changes nothing. The session state is one list, which the running
event changes in place.

Gradio evaluates the annotations of handlers, and it is imported only when the page is built. Therefore this file does not
postpone annotations.
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

from rorqual.serve.errors import ApiError
from rorqual.serve.ui_client import chunks
from rorqual.serve.ui_turn import Row, Turn, Wanted, corrected, pictured, question, upto_question

FILES = Path(__file__).parent / "page"
TICK = 0.1
"""Seconds between two updates of a growing reply."""
SETTLED = 0.4
"""Seconds between an event's last real update and the empty one after it. Without this pause, the page lost the state of
the box's buttons in one of ten tries under load. Gradio's frontend applies the second update in place, to the object that
the first is still to be rendered from."""
FORMULAS = [("\\[", "\\]", True), ("\\(", "\\)", False)]
"""Formula delimiters (left, right, display). `ui_math` converts dollar delimiters to these."""
Pictures = AsyncGenerator[tuple[Any, ...], None]
"""Successive updates of the page's components."""
IDLE = "Enter sends, Shift+Enter starts a new line."


class Mounted:
    """Gradio's application, built at the first request for it, because it takes seconds and a hundred megabytes."""

    def __init__(self, api: ASGIApp, model: str, temperature: float, thinks: bool) -> None:
        self._build = partial(build, api, model, temperature, thinks)
        self._closing = asyncio.Event()
        self._ready: asyncio.Future[ASGIApp] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._blocks: Any = None

    async def app(self) -> ASGIApp:
        """Return the application. The first call builds it, and all wait until it is ready."""
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._keeper = asyncio.create_task(self._keep(self._ready))
        return await asyncio.shield(self._ready)

    def close(self) -> None:
        """End the application's background tasks."""
        self._closing.set()

    def forget(self, session: str) -> None:
        """Drop Gradio's state of a session."""
        if self._blocks is not None:
            holder, queue = self._blocks.state_holder, self._blocks._queue
            for held in (holder.session_data, holder.time_last_used):
                held.pop(session, None)
            if not queue.pending_event_ids_session.get(session):
                for held in (queue.pending_event_ids_session, queue.pending_messages_per_session):
                    held.pop(session, None)

    async def _keep(self, ready: asyncio.Future[ASGIApp]) -> None:
        try:
            parent, self._blocks = await asyncio.to_thread(self._build)
        except Exception as error:
            ready.set_exception(error)  # callers get the error, and it is logged
            raise
        gc.freeze()  # Gradio's objects are permanent; garbage collection need not traverse them
        async with parent.router.lifespan_context(parent):
            ready.set_result(parent)
            await self._closing.wait()


def build(api: ASGIApp, model: str, temperature: float, thinks: bool) -> tuple[FastAPI, Any]:
    """Build the page and return (application, Gradio blocks). Needs Gradio.

    `temperature`: initial value of the setting. `thinks`: whether to show the thinking switch.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it at import and before it sends analytics
    import gradio as gr

    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    mono = ("ui-monospace", "Consolas", "monospace")
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=mono)
    blocks = _blocks(gr, Chat(gr, api, model), temperature, thinks)
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


class Going:
    """A user event of a session, running or waiting. `replaced`: a newer event exists, so this one makes no more updates.

    `heirs`: events that were closed while they waited for this one. Events that wait for them must wait for this one.
    """

    def __init__(self) -> None:
        self.stopped, self.over = asyncio.Event(), asyncio.Event()
        self.replaced = False
        self.heirs: list[Going] = []

    def end(self) -> None:
        """Let waiting events start."""
        self.over.set()
        for heir in self.heirs:
            heir.end()


class Chat:
    """The page's event handlers. Each yields updates of four components: chat, conversation, input box, status.

    The conversation, `held`, is the session's list of rows. Only the running event reads or changes it.
    """

    def __init__(self, gr: Any, api: ASGIApp, model: str) -> None:
        self.gr, self.api, self.model = gr, api, model
        self._going: dict[str, Going] = {}

    def stop(self, session: str) -> None:
        """Stop a session's running reply, if any."""
        if (going := self._going.get(session)) is not None:
            going.stopped.set()

    async def reply(
        self, held: list[Row], asked: Callable[[list[Row]], list[Row]], wanted: Wanted, tenant: str, session: str
    ) -> Pictures:
        """Generate a reply. `asked` turns the conversation into rows that end with a question; if it returns none, do nothing."""
        async with self._turn(session) as going:
            rows = [] if going.replaced else asked(held)
            if rows:
                before = pictured(rows)
                async with aclosing(self._reply(going, rows, wanted, tenant)) as pictures:
                    async for now, box, status in pictures:
                        held[:] = now
                        yield [*before[: len(now)], *pictured(now[len(rows) :])], held, box, status
                await asyncio.sleep(SETTLED)
            yield self._unchanged()

    async def clear(self, held: list[Row], session: str) -> Pictures:
        """Start a new conversation."""
        async with self._turn(session):
            held.clear()
            yield [], held, self.gr.Textbox(value="", submit_btn=True, stop_btn=False), _status(IDLE)
            await asyncio.sleep(SETTLED)
            yield self._unchanged()

    @asynccontextmanager
    async def _turn(self, session: str) -> AsyncIterator[Going]:
        """Run as the session's current event. Stop the previous one first, and wait until its last update was sent.

        The wait needs no timeout: Gradio resumes a generator after it sent an update, and closes it if the client is gone.
        """
        before, going = self._going.get(session), Going()
        self._going[session] = going
        try:
            if before is not None:
                before.replaced = True
                before.stopped.set()
                await before.over.wait()
            yield going
        finally:
            if before is not None and not before.over.is_set():
                before.heirs.append(going)
            else:
                going.end()
            last = self._going.get(session)
            if last is not None and last.over.is_set():
                del self._going[session]

    async def _reply(self, going: Going, rows: list[Row], wanted: Wanted, tenant: str) -> Pictures:
        """Yield updates of chat, box and status, until the reply ends or a newer event replaces this one."""
        turn = Turn()
        pump = asyncio.create_task(self._pump(turn, wanted.body(self.model, rows), tenant))
        stopping = asyncio.create_task(going.stopped.wait())
        try:
            yield rows, self.gr.Textbox(value="", submit_btn=False, stop_btn=True), _status("Waiting. Esc stops.")
            while not pump.done() and not going.stopped.is_set():
                await asyncio.wait((pump, stopping), timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
                if not going.replaced:
                    yield [*rows, *turn.rows()], self.gr.skip(), _status(f"{turn.phase}. Esc stops.")
        finally:
            stopping.cancel()
            pump.cancel()
            [outcome, _] = await asyncio.gather(pump, stopping, return_exceptions=True)
        if going.replaced:
            return
        turn.stop()
        yield self._end(rows, turn, outcome, stopped=going.stopped.is_set())
        if isinstance(outcome, Exception) and not isinstance(outcome, ApiError):
            raise outcome  # a bug: Gradio logs it and shows an error

    def _unchanged(self) -> tuple[Any, ...]:
        """Return an update that changes nothing, the last of every event. Gradio sends it again after the next event started."""
        return (self.gr.skip(),) * 4

    def _end(self, rows: Sequence[Row], turn: Turn, outcome: object, *, stopped: bool) -> tuple[Any, ...]:
        """Return the last update. A question whose request failed without any reply goes back into the box."""
        box = {"submit_btn": True, "stop_btn": False}
        now = [*rows, *turn.rows()]
        if isinstance(outcome, ApiError):
            if turn.empty:
                now, box["value"] = now[:-1], now[-1]["content"]
            return now, self.gr.Textbox(**box), _status(f"{_explained(outcome)}", error=True)
        return now, self.gr.Textbox(**box), _status(turn.summary(stopped=stopped))

    async def _pump(self, turn: Turn, body: dict[str, Any], tenant: str) -> None:
        async with aclosing(chunks(self.api, tenant, body)) as stream:
            async for chunk in stream:
                if chunk is not None:
                    turn.add(chunk)


def _explained(error: ApiError) -> str:
    text = error.message[:1].upper() + error.message[1:]
    return f"{text.rstrip('.')}. (error {error.status})"


def _status(text: str, *, error: bool = False) -> str:
    return f'<p class="status{" error" if error else ""}">{html.escape(text)}</p>'


def _blocks(gr: Any, chat: Chat, temperature: float, thinks: bool) -> Any:
    with gr.Blocks(title=chat.model, fill_height=True, analytics_enabled=False) as blocks:
        head = (FILES / "head.html").read_text(encoding="utf-8").replace("{model}", html.escape(chat.model))
        gr.Markdown(head, elem_id="head", sanitize_html=False, latex_delimiters=[])  # gr.HTML would need `eval`
        rows = gr.State([])
        shown = gr.Chatbot(
            label="Conversation", show_label=False, container=False, scale=1, height=None, min_height=160, elem_id="chat",
            layout="bubble", buttons=["copy"], editable="user", feedback_options=None, group_consecutive_messages=True,
            latex_delimiters=[{"left": left, "right": right, "display": display} for left, right, display in FORMULAS],
            placeholder=f"Ask {html.escape(chat.model)} something.", sanitize_html=True,
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
            heat = gr.Slider(0, 2, value=temperature, step=0.05, label="Temperature", min_width=200)
            most = gr.Number(
                0, label="Max tokens (0: no limit)", minimum=0, maximum=2**31 - 1, precision=0, min_width=200
            )
        blocks.unload(_wire(gr, chat, (shown, rows, box, status), [thinking, heat, most], retry, clear))
    return blocks


def _wire(gr: Any, chat: Chat, parts: Sequence[Any], settings: Sequence[Any], retry: Any, clear: Any) -> Any:
    """Connect the page's events with their handlers. Return the handler for a closed page."""
    shown, rows, box, _ = parts

    def wanted(thinking: Any, heat: float, most: float) -> Wanted:
        return Wanted(thinking, heat, int(most or 0))

    async def ask(text: str, held: list[Row], thinking: str, heat: float, most: float, request: gr.Request) -> Pictures:
        if not text.strip():
            return
        how = wanted(thinking, heat, most), request.username, request.session_hash
        async with aclosing(chat.reply(held, lambda rows: [*rows, question(text)], *how)) as all_:
            async for picture in all_:
                yield picture

    async def again(held: list[Row], thinking: str, heat: float, most: float, request: gr.Request) -> Pictures:
        how = wanted(thinking, heat, most), request.username, request.session_hash
        async with aclosing(chat.reply(held, upto_question, *how)) as all_:
            async for picture in all_:
                yield picture

    async def edited(
        held: list[Row], thinking: str, heat: float, most: float, edit: gr.EditData, request: gr.Request
    ) -> Pictures:
        how = wanted(thinking, heat, most), request.username, request.session_hash
        async with aclosing(
            chat.reply(held, partial(corrected, place=int(edit.index), value=edit.value), *how)
        ) as all_:
            async for picture in all_:
                yield picture

    async def fresh(held: list[Row], request: gr.Request) -> Pictures:
        async with aclosing(chat.clear(held, request.session_hash)) as all_:
            async for picture in all_:
                yield picture

    async def stop(request: gr.Request) -> None:
        # This is async because Gradio runs plain functions in threads, and asyncio events are not thread-safe.
        chat.stop(request.session_hash)

    common: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    running = {"outputs": list(parts), **common}
    # A second Enter must not send the text in the box again. A second Retry replaces the first.
    box.submit(ask, [box, rows, *settings], trigger_mode="once", **running)
    retry.click(again, [rows, *settings], trigger_mode="multiple", **running)
    shown.retry(again, [rows, *settings], trigger_mode="multiple", **running)
    shown.edit(edited, [rows, *settings], trigger_mode="multiple", **running)
    box.stop(stop, **common)
    clear.click(fresh, [rows], list(parts), **common)
    return stop
