"""The page in a real browser, on a real server, with a model that was taught two replies. Needs gradio, playwright and a Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import playwright.sync_api as playwright
import pytest
from served import Server, start, stop
from taught import CODE, FOREIGN, LONG_QUESTION, PICTURE_QUESTION, PRICE_QUESTION, QUESTION, THOUGHT, write_taught

WAIT = 300_000.0
"""Milliseconds: a machine with much else to do is slow, not wrong."""
expect = playwright.expect
expect.set_options(timeout=WAIT)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.browser

DONE = r'requests_total\{route="/v1/chat/completions",status="200"\}'
BOX, STATUS = "#message textarea", "#status"
WATCH = """() => {
  const chat = document.querySelector("#chat");
  window.cameBack = [];
  let cleared = false;
  new MutationObserver(() => {
    cleared ||= !chat.querySelector(".message-row");
    if (cleared && chat.innerText.includes("la la la")) cameBack.push(chat.innerText.slice(0, 200));
  }).observe(chat, { childList: true, subtree: true, characterData: true });
}"""
"""Notes whatever of the long answer is shown after the conversation was empty."""
REST = """limit => new Promise((done, failed) => {
  const began = performance.now();
  let last = began;
  const watch = new MutationObserver(() => { last = performance.now(); });
  watch.observe(document, { attributes: true, childList: true, characterData: true, subtree: true });
  const look = () => {
    const now = performance.now();
    // What slides changes no element.
    const moves = a => a.playState === "running" && a.effect?.getComputedTiming().endTime !== Infinity;
    if (document.getAnimations().some(moves)) last = now;
    if (now - last < 1000 && now - began < limit) { setTimeout(look, 50); return; }
    watch.disconnect();
    now - last < 1000 ? failed(new Error("the page goes on changing")) : done();
  };
  look();
})"""
"""Waits until nothing on the page has changed or moved for a second. Gradio's page draws anew what changed: what is pressed while it does so,
which nobody's hand is fast enough for, may be gone before it is let go (seen: a click on Retry, a key on a thought, a temperature)."""


@dataclass
class Elsewhere:
    """Where every host but the server's own leads to in this browser. It counts who comes."""

    door: socket.socket
    visits: list[str] = field(default_factory=list)

    def listen(self) -> None:
        while True:
            try:
                visitor, _ = self.door.accept()
            except OSError:
                return
            visitor.settimeout(5)
            try:
                self.visits.append(visitor.recv(200).decode("latin-1"))
            except OSError:
                self.visits.append("somebody")
            visitor.close()

    @property
    def pages(self) -> list[str]:
        """Requests for what the model wrote. The browser itself, which looks for updates, comes by as well."""
        return [visit for visit in self.visits if "foreign.example" in visit]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("taught")
    running = start(
        write_taught(folder / "taught"),
        folder / "keys.json",
        folder / "log",
        "port=0",
        "queue=1",
        "ui=true",
        "grace=3600",
    )
    yield running
    if running.process.poll() is None:
        assert stop(running) == 0
    log = running.log.read_text(encoding="utf-8")
    assert "Traceback" not in log and "without completing" not in log, log


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        found = Elsewhere(door)
        threading.Thread(target=found.listen, daemon=True).start()
        yield found
        door.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def browser(elsewhere: Elsewhere) -> Iterator[playwright.Browser]:
    assert CHROMIUM, "No Chromium here: apt-get update && apt-get install -y chromium"
    port = elsewhere.door.getsockname()[1]
    rules = f"--host-resolver-rules=MAP * 127.0.0.1:{port}, EXCLUDE 127.0.0.1"
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
        yield found
        found.close()


Visit = Callable[..., playwright.Page]


@pytest.fixture
def visit(browser: playwright.Browser, taught: Server) -> Iterator[Visit]:
    """A new visitor, who has typed the key and sees the page."""
    contexts = []

    def enter(
        width: int = 1100, height: int = 800, scheme: str = "light", thinking: str = "auto", watch: Any = None
    ) -> playwright.Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        if watch is not None:
            page.on("request", watch)
        page.goto(taught.url)
        expect(page.locator("#key")).to_be_focused(timeout=WAIT)
        page.keyboard.type(taught.key)
        page.keyboard.press("Enter")
        page.wait_for_selector(BOX)
        expect(page.locator(BOX)).to_be_focused(timeout=WAIT)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("number input for Temperature").wait_for(state="visible")
        rest(page)
        page.get_by_label("number input for Temperature").fill("0")
        page.get_by_label("number input for Temperature").press("Tab")
        page.get_by_label(thinking, exact=True).check()
        rest(page)
        page.get_by_role("button", name="Settings").click()
        page.focus(BOX)
        return page

    yield enter
    for context in contexts:
        context.close()
    if taught.process.poll() is None:
        taught.wait("running", 0)


def rest(page: playwright.Page) -> None:
    """Until the page has drawn what there is."""
    page.evaluate(REST, WAIT)


def press(button: playwright.Locator) -> None:
    """Click a button that the mouse reaches, in one task of the page. Between a mouse's down and up a busy machine may draw or move a button,
    and then nothing was clicked."""
    button.click(trial=True)
    button.dispatch_event("click")


def ask(page: playwright.Page, text: str) -> None:
    rest(page)
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def until(page: playwright.Page, words: str) -> None:
    """Until the status line says something, and the page is at rest."""
    expect(page.locator(STATUS)).to_contain_text(re.compile(words))
    rest(page)


def answers(page: playwright.Page) -> int:
    return page.locator("#chat .bot-row").count()


def nameless(page: playwright.Page) -> list[str]:
    """What the keyboard reaches and nobody who does not see it could tell apart."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll('.gradio-container :is(button, input, textarea, [tabindex="0"])')].filter(e =>
        e.checkVisibility() && e.tabIndex >= 0
        && !(e.innerText?.trim() || e.ariaLabel || e.title || e.labels?.[0]?.innerText.trim())).map(e => e.outerHTML.slice(0, 200))"""
    )
    return found


def test_a_conversation_with_a_thought_a_formula_and_code(visit: Visit, taught: Server) -> None:
    page = visit()
    ask(page, QUESTION)
    until(page, "tokens in")
    title = page.locator("#chat .thought-group .title")
    assert re.fullmatch(r"\s*Thought for \d+\.\d s\s*", title.inner_text())
    assert nameless(page) == []
    thought = page.get_by_text(THOUGHT)
    assert not thought.is_visible()
    title.focus()
    page.keyboard.press("Enter")
    thought.wait_for(state="visible")
    assert page.locator("#chat .bot-row .katex").count() == 1
    assert page.locator("#chat .bot-row .katex .mord", has_text="π").count() >= 1
    assert page.locator("#chat .bot-row pre code").inner_text().strip() == CODE
    page.evaluate("document.fonts.ready")
    assert page.evaluate("[...document.fonts].some(f => f.family.includes('KaTeX_M') && f.status === 'loaded')")
    assert page.locator(BOX).input_value() == ""

    done = taught.metric(DONE)
    rest(page)
    press(page.get_by_role("button", name="Retry", exact=True).first)
    taught.wait(DONE, done + 1)
    until(page, "tokens in")
    expect(page.locator("#chat .bot-row pre code")).to_have_count(1)
    assert page.locator("#chat .user-row").count() == 1

    page.focus(BOX)
    ask(page, PICTURE_QUESTION)  # the conversation is remembered: two questions, two answers
    expect(page.locator("#chat .user-row")).to_have_count(2)
    until(page, "tokens in")

    # A question that is asked anew forgets what came after it.
    rest(page)
    press(page.get_by_role("button", name="Edit", exact=True).first)
    page.locator("#chat textarea").wait_for(state="visible")
    rest(page)
    page.locator("#chat textarea").fill(PICTURE_QUESTION)
    rest(page)
    press(page.get_by_role("button", name="Submit", exact=True))
    taught.wait(DONE, done + 3)
    expect(page.locator("#chat .user-row")).to_have_count(1)
    expect(page.locator("#chat .bot-row img")).to_have_count(1)
    rest(page)
    press(page.get_by_role("button", name="New chat"))
    expect(page.locator("#chat .user-row")).to_have_count(0)


def test_prices_are_text_and_formulas_are_formulas(visit: Visit, taught: Server) -> None:
    page = visit()
    ask(page, PRICE_QUESTION)
    until(page, "tokens in")
    said, asked = page.locator("#chat .bot-row"), page.locator("#chat .user-row")
    assert said.locator(".katex").count() == 4 and said.locator(".katex-display").count() == 2
    assert "From $5 to $6, or 7$: " in said.inner_text() and "\\" not in said.inner_text()
    assert asked.locator(".katex").count() == 1 and ", $5 or $6" in asked.inner_text()
    done = taught.metric(DONE)
    rest(page)
    press(page.get_by_role("button", name="Edit", exact=True).first)
    page.locator("#chat textarea").wait_for(state="visible")
    rest(page)
    press(page.get_by_role("button", name="Submit", exact=True))
    taught.wait(DONE, done + 1)
    until(page, "tokens in")
    assert said.locator(".katex").count() == 4  # what was typed was asked again, and not its picture


def test_nothing_leaves_the_machine(visit: Visit, taught: Server, elsewhere: Elsewhere) -> None:
    """Neither the page nor what a model writes: a picture in an answer would tell another host what was talked about."""
    tried: list[playwright.Request] = []

    def watch(request: playwright.Request) -> None:
        tried.append(request)

    page = visit(watch=watch)
    ask(page, PICTURE_QUESTION)
    until(page, "tokens in")
    picture = page.locator("#chat .bot-row img")
    assert picture.count() == 1 and picture.evaluate("e => e.naturalWidth") == 0
    own = (taught.url, "data:", "blob:")
    assert len(tried) > 20
    assert [each.url for each in tried if not each.url.startswith(own) and "csp" not in (each.failure or "")] == []
    assert elsewhere.pages == []
    other = page.context.new_page()  # the trap itself works: a page without our policy gets there
    with suppress(playwright.Error):
        other.goto(FOREIGN)
    assert elsewhere.pages
    elsewhere.visits.clear()


def test_by_keyboard_alone(visit: Visit, taught: Server) -> None:
    page = visit()
    before = taught.metric("cancelled_total")
    page.keyboard.type("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    assert page.locator(BOX).input_value() == "a\nb"
    page.keyboard.press("Control+A")
    ask(page, LONG_QUESTION)
    expect(page.locator("#chat")).to_contain_text("la la la")
    page.keyboard.press("Escape")
    until(page, "Stopped after")
    taught.wait("cancelled_total", before + 1)
    taught.wait("running", 0)
    assert page.evaluate(f"document.activeElement === document.querySelector('{BOX}')")
    names = []
    for _ in range(12):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || ''").strip()
        )
        if names[-1].startswith("Settings"):
            break
    assert names[0] == "Send" and names[-1].startswith("Settings"), names
    page.keyboard.press("Enter")
    page.get_by_label("number input for Temperature").wait_for(state="visible")
    assert nameless(page) == []


def test_a_thought_is_open_while_it_lasts(visit: Visit) -> None:
    page = visit(thinking="on")
    ask(page, LONG_QUESTION)
    page.locator("#chat .thought-group .content").wait_for(state="visible")
    assert "Thinking" in page.locator("#chat .thought-group .title").inner_text()
    page.keyboard.press("Escape")
    until(page, "Stopped after")
    expect(page.locator("#chat .thought-group .title")).to_contain_text("Thought for")
    page.locator("#chat .thought-group .content").wait_for(state="hidden")


def test_a_reply_under_way_gives_way_to_another_and_to_a_new_chat(visit: Visit, taught: Server) -> None:
    page = visit()
    before = taught.metric("cancelled_total")
    ask(page, LONG_QUESTION)
    expect(page.locator("#chat")).to_contain_text("la la la")
    for count in (1, 2):  # the second ends a reply that Retry itself began
        row = page.locator("#chat .bot-row").element_handle()
        press(page.get_by_role("button", name="Retry", exact=True).last)
        taught.wait("cancelled_total", before + count)
        page.wait_for_function("row => !row.isConnected", arg=row)  # the next reply has begun
        expect(page.locator("#chat .bot-row")).to_contain_text("la la la")
        assert page.locator("#chat .user-row").count() == 1 and answers(page) == 1
    page.evaluate(WATCH)
    press(page.get_by_role("button", name="New chat"))
    taught.wait("cancelled_total", before + 3)
    expect(page.locator("#chat .message-row")).to_have_count(0)
    expect(page.locator("#message .submit-button")).to_be_visible(timeout=WAIT)
    page.focus(BOX)
    ask(page, QUESTION)
    until(page, "tokens in")  # what the server sent before this has arrived: nothing can be late any more
    assert page.evaluate("cameBack") == []
    assert page.locator("#chat .user-row").count() == 1 and answers(page) == 1


def test_whoever_leaves_frees_the_engine(visit: Visit, taught: Server) -> None:
    page = visit()
    before = taught.metric("cancelled_total")
    ask(page, LONG_QUESTION)
    expect(page.locator("#chat")).to_contain_text("la la la")
    page.close()
    taught.wait("cancelled_total", before + 1)


def test_errors_are_shown_as_they_are(visit: Visit, taught: Server) -> None:
    first, second = visit(), visit()
    first.bring_to_front()
    ask(first, LONG_QUESTION)
    expect(first.locator("#chat")).to_contain_text("la la la")
    second.bring_to_front()
    second.focus(BOX)
    ask(second, QUESTION)
    until(second, "error 429")
    assert second.locator(BOX).input_value() == QUESTION and answers(second) == 0
    os.kill(taught.engine(), signal.SIGKILL)
    until(first, "engine died")
    assert first.locator(f"{STATUS} .error").count() == 1 and answers(first) == 1
    taught.wait("engine_up", 1)
    second.keyboard.press("Enter")
    until(second, "tokens in")


@pytest.mark.parametrize(("width", "height", "scheme"), [(360, 740, "dark"), (360, 740, "light"), (1400, 900, "dark")])
def test_narrow_and_wide_light_and_dark(visit: Visit, width: int, height: int, scheme: str) -> None:
    page = visit(width, height, scheme)
    ask(page, QUESTION)
    until(page, "tokens in")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    send = page.get_by_role("button", name="Send").bounding_box()
    assert send is not None and send["x"] + send["width"] <= width and send["y"] + send["height"] <= height
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", shade)[:3])) < 3 * 128) == (scheme == "dark"), shade


def test_an_open_page_does_not_hold_up_the_servers_end(
    visit: Visit, browser: playwright.Browser, taught: Server
) -> None:
    """The last test here. The page's heartbeat is a stream that would go on for ever, and what goes on is given an hour."""
    visit()
    assert stop(taught) == 0
