"""The chat itself, in Gradio: what is said stays in the session's state as it was said; the browser gets what is to be shown.

Gradio runs a session's handlers side by side: a picture that one of them made may be under way while another makes the next, and when a
handler ends, its last picture is sent once more. So the gestures of a session take turns. A turn is over only when its last picture has
been sent, and that one is empty; the session's state is one list, changed in place by whoever's turn it is.

Gradio reads the annotations of handlers as they stand, and is imported only where the page is built: so this file does without postponed ones.
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
"""Seconds between two pictures of a reply that grows."""
SETTLED = 0.4
"""Seconds between a turn's last picture that changes something and the one after it, in which nothing does. Where the second came at once,
the page lost what the first said of the box's buttons in one of ten tries under load: Gradio's page applies the second's differences in
place, to the object that the first is still to be drawn from."""
FORMULAS = [("\\[", "\\]", True), ("\\(", "\\)", False)]
"""Those between dollars become these: see `ui_math`."""
Pictures = AsyncGenerator[tuple[Any, ...], None]
"""What the page's parts become, again and again."""
IDLE = "Enter sends, Shift+Enter breaks the line."


class Mounted:
    """Gradio's application, built when somebody asks for it: it takes seconds and a hundred megabytes."""

    def __init__(self, api: ASGIApp, model: str, temperature: float, thinks: bool) -> None:
        self._build = partial(build, api, model, temperature, thinks)
        self._closing = asyncio.Event()
        self._ready: asyncio.Future[ASGIApp] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._blocks: Any = None

    async def app(self) -> ASGIApp:
        """The application; whoever asks first waits until it is there."""
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._keeper = asyncio.create_task(self._keep(self._ready))
        return await asyncio.shield(self._ready)

    def close(self) -> None:
        """End what runs behind the application."""
        self._closing.set()

    def forget(self, session: str) -> None:
        """Drop what Gradio holds of a page."""
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
            ready.set_exception(error)  # whoever waits is told; then it is in the log
            raise
        gc.freeze()  # Gradio stays: no collection looks at it again
        async with parent.router.lifespan_context(parent):
            ready.set_result(parent)
            await self._closing.wait()


def build(api: ASGIApp, model: str, temperature: float, thinks: bool) -> tuple[FastAPI, Any]:
    """The page over the API's routes, and Gradio's part of it; `temperature` is what it begins with, `thinks`: whether the
    model can be told to think. It needs Gradio."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported, and wherever it would tell somebody
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
    """One gesture's turn in a session, until it is stopped. `replaced`: another gesture waits for it to be over, or came after it.

    `heirs`: gestures that were closed while they waited for this one; who waits for them waits for this one.
    """

    def __init__(self) -> None:
        self.stopped, self.over = asyncio.Event(), asyncio.Event()
        self.replaced = False
        self.heirs: list[Going] = []

    def end(self) -> None:
        """Let whoever waits begin."""
        self.over.set()
        for heir in self.heirs:
            heir.end()


class Chat:
    """What happens on the page. Each handler is a generator of what the page's parts become: chat, conversation, box, status.

    A conversation, `held`, is the session's own list of rows. Only whoever's turn it is reads or changes it.
    """

    def __init__(self, gr: Any, api: ASGIApp, model: str) -> None:
        self.gr, self.api, self.model = gr, api, model
        self._going: dict[str, Going] = {}

    def stop(self, session: str) -> None:
        """End the reply of a session, if one is on its way."""
        if (going := self._going.get(session)) is not None:
            going.stopped.set()

    async def reply(
        self, held: list[Row], asked: Callable[[list[Row]], list[Row]], wanted: Wanted, tenant: str, session: str
    ) -> Pictures:
        """Ask for a reply to what `asked` makes of the conversation: rows that end with a question, or none, and then nothing happens."""
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
        """Begin a new conversation."""
        async with self._turn(session):
            held.clear()
            yield [], held, self.gr.Textbox(value="", submit_btn=True, stop_btn=False), _status(IDLE)
            await asyncio.sleep(SETTLED)
            yield self._unchanged()

    @asynccontextmanager
    async def _turn(self, session: str) -> AsyncIterator[Going]:
        """A gesture's turn. Whatever is on its way in this session ends first: its last picture is sent, and its place in the queue free.

        The wait needs no limit: Gradio goes on with a generator when it has sent a picture, and closes it where nobody listens any more.
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
        """Chat, box and status, again and again; no more of them once it is replaced."""
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
            raise outcome  # a bug: it is logged, and shown as one

    def _unchanged(self) -> tuple[Any, ...]:
        """The last picture of every turn. Gradio sends it once more when the turn is over, and the next may have begun by then."""
        return (self.gr.skip(),) * 4

    def _end(self, rows: Sequence[Row], turn: Turn, outcome: object, *, stopped: bool) -> tuple[Any, ...]:
        """The last picture. A question that got nothing at all goes back into the box."""
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
                0, label="Most tokens (0: no limit)", minimum=0, maximum=2**31 - 1, precision=0, min_width=200
            )
        blocks.unload(_wire(gr, chat, (shown, rows, box, status), [thinking, heat, most], retry, clear))
    return blocks


def _wire(gr: Any, chat: Chat, parts: Sequence[Any], settings: Sequence[Any], retry: Any, clear: Any) -> Any:
    """Which gesture does what; what is to be done when somebody leaves."""
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
        # Gradio runs plain functions in threads, and events may be set in the loop alone.
        chat.stop(request.session_hash)

    common: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    running = {"outputs": list(parts), **common}
    # A second Enter would ask the same once more: what was typed is still in the box. A second Retry ends what the first began.
    box.submit(ask, [box, rows, *settings], trigger_mode="once", **running)
    retry.click(again, [rows, *settings], trigger_mode="multiple", **running)
    shown.retry(again, [rows, *settings], trigger_mode="multiple", **running)
    shown.edit(edited, [rows, *settings], trigger_mode="multiple", **running)
    box.stop(stop, **common)
    clear.click(fresh, [rows], list(parts), **common)
    return stop
