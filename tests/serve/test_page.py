"""The page in a real browser, on a real server, with a model that was taught some replies. Needs playwright and a Chromium."""

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
from pathlib import Path

import playwright.sync_api as playwright
import pytest
from taught import CODE, FOREIGN, LONG_QUESTION, PICTURE_QUESTION, QUESTION, THOUGHT, write_taught

from rorqual.core.records import RunDir, write_json
from rorqual.serve.keys import ApiKeys
from served import Server, start, stop

WAIT = 120_000.0
"""Milliseconds: a machine with much else to do is slow, not wrong."""
expect = playwright.expect
expect.set_options(timeout=WAIT)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.browser

DONE = r'requests_total\{route="/v1/chat/completions",status="200"\}'
CHAT = "**/v1/chat/completions"
PROMPTS = [QUESTION, LONG_QUESTION, PICTURE_QUESTION]
RENDER = """async text => {
  const { render } = await import("/markdown.mjs");
  const element = document.createElement("div");
  document.body.append(element);
  render(element, text);
  return element.innerHTML;
}"""
ROLES = {"button", "checkbox", "combobox", "DisclosureTriangle", "link", "spinbutton", "textbox"}
HOSTILE = [
    f"<script>window.ran = 1</script><img src='{FOREIGN}' onerror='window.ran = 1'>",
    f"![x]({FOREIGN}) ![y]({FOREIGN} \"' onerror='window.ran=1\")",
    "[link](javascript:window.ran=1) <a href='javascript:window.ran=1'>x</a>",
    f"<iframe src='{FOREIGN}'></iframe><form action='{FOREIGN}'><input name='key'></form><style>@import '{FOREIGN}';</style>",
    f"$\\href{{javascript:window.ran=1}}{{x}}$ $\\includegraphics{{{FOREIGN}}}$ $\\htmlData{{x=1}}{{y}}$",
    "<svg><animate onbegin='window.ran=1' attributeName=x dur=1s></svg> <math><mtext><img src=x onerror='window.ran=1'></mtext></math>",
    '```html" onmouseover="window.ran=1\n<b>code</b>\n```',
]


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
            with suppress(OSError):
                self.visits.append(visitor.recv(200).decode("latin-1"))
            visitor.close()

    @property
    def pages(self) -> list[str]:
        """Requests for what the model wrote. The browser itself, which looks for updates, comes by as well."""
        return [visit for visit in self.visits if "foreign.example" in visit]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def other_key(keys: Path) -> str:
    return ApiKeys.load(keys).ensure_key("other") or ""


@pytest.fixture(scope="module")
def taught(keys: Path, other_key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("taught")
    write_json(RunDir(write_taught(folder / "taught")).prompts_file, PROMPTS)
    running = start(folder / "taught", keys, folder / "log", "port=0", "queue=1")
    yield running
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
    """A new visitor, who has typed the key and sees the page, with temperature 0. No script of the page may fail."""
    contexts, failures = [], list[str]()

    def enter(width: int = 1100, height: int = 800, scheme: str = "light", thinking: str = "auto") -> playwright.Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.set_default_timeout(WAIT)
        page.goto(taught.url)
        log_in(page, taught.key)
        page.get_by_text("Settings").click()
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Thinking").select_option(thinking)
        page.get_by_text("Settings").click()
        page.focus("#box")
        return page

    yield enter
    for context in contexts:
        context.close()
    taught.wait("running", 0, WAIT / 1000)
    assert failures == []


def log_in(page: playwright.Page, key: str) -> None:
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    expect(page.locator("#box")).to_be_focused()


def ask(page: playwright.Page, text: str) -> None:
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def until(page: playwright.Page, words: str = "tokens in") -> None:
    expect(page.locator("#status")).to_contain_text(re.compile(words))


def ask_and_wait(page: playwright.Page, text: str) -> None:
    """Ask, and wait until the reply is complete."""
    ask(page, text)
    until(page)


def press(page: playwright.Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).last.click()


def test_a_conversation_with_a_thought_a_formula_and_code(visit: Visit, taught: Server) -> None:
    page = visit()
    questions, reply = page.locator("article.user"), page.locator("article.assistant")
    ask_and_wait(page, QUESTION)
    assert re.fullmatch(r"Thought for \d+\.\d s", reply.locator("summary").inner_text())
    assert not page.get_by_text(THOUGHT).is_visible()
    reply.locator("summary").press("Enter")
    expect(page.get_by_text(THOUGHT)).to_be_visible()
    expect(reply.locator(".katex")).to_have_count(1)
    assert reply.locator(".katex .mord", has_text="π").count() >= 1
    assert reply.locator("pre code").inner_text().strip() == CODE
    page.evaluate("document.fonts.ready")
    assert page.evaluate("[...document.fonts].some(f => f.family.includes('KaTeX_M') && f.status === 'loaded')")
    assert page.locator("#box").input_value() == ""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    press(page, "Copy code")
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").strip() == CODE

    done = taught.metric(DONE)
    press(page, "Retry")
    taught.wait(DONE, done + 1, WAIT / 1000)
    until(page)
    expect(reply.locator("pre code")).to_have_count(1)
    expect(questions).to_have_count(1)

    page.focus("#box")
    with page.expect_request(CHAT) as sent:  # the conversation is sent, and its reasoning is not
        ask(page, PICTURE_QUESTION)
    roles = [message["role"] for message in sent.value.post_data_json["messages"]]
    assert roles == ["user", "assistant", "user"] and THOUGHT not in (sent.value.post_data or "")
    until(page)

    # The page survives a reload.
    page.reload()
    expect(questions).to_have_text([re.compile(QUESTION), re.compile(PICTURE_QUESTION)])
    expect(reply.first.locator("pre code")).to_have_count(1)
    assert not page.get_by_text(THOUGHT).is_visible()
    assert page.get_by_label("Temperature").input_value() == "0"

    # A question that is edited forgets what came after it.
    page.get_by_role("button", name="Edit").first.click()
    page.locator("article textarea").fill(PICTURE_QUESTION)
    press(page, "Submit")
    expect(questions).to_have_text([re.compile(PICTURE_QUESTION)])
    until(page)
    press(page, "New chat")
    expect(page.locator("article")).to_have_count(0)
    page.reload()
    expect(page.locator("#box")).to_be_focused()
    expect(page.locator("article")).to_have_count(0)


def test_markup_is_inert_and_nothing_leaves_the_machine(visit: Visit, taught: Server, elsewhere: Elsewhere) -> None:
    """Neither the page nor what a model writes: a picture in an answer would tell another host what was talked about."""
    page = visit()
    tried: list[str] = []
    page.on("request", lambda request: tried.append(request.url))
    ask_and_wait(page, PICTURE_QUESTION)
    link = page.locator("article.assistant a")
    assert (link.get_attribute("href"), link.get_attribute("rel")) == (FOREIGN, "noopener noreferrer")
    for text in HOSTILE:
        made = page.evaluate(RENDER, text)
        assert not re.search(r"<(script|img|iframe|form|style|animate)|<[^>]*\b(on\w+|javascript:)", made), made
    page.wait_for_timeout(500)
    page.reload()
    expect(link).to_have_count(1)
    assert page.evaluate("window.ran") is None
    assert len(tried) > 10 and [url for url in tried if not url.startswith(taught.url)] == []
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
    assert page.locator("#box").input_value() == "a\nb"
    page.keyboard.press("Control+A")
    ask(page, LONG_QUESTION)
    expect(page.locator("#chat")).to_contain_text("la la la")
    page.keyboard.press("Escape")
    until(page, "Stopped after")
    taught.wait("cancelled_total", before + 1, WAIT / 1000)
    expect(page.locator("#box")).to_be_focused()
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || ''").strip())
    assert {"Send", "Settings", "Retry", "New chat", "Log out", "Edit", "Copy"} <= reached


def controls(page: playwright.Page) -> list[tuple[str, str]]:
    """Role and name of all buttons, fields and links, as a screen reader gets them."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    shown = [
        (node["role"]["value"], node["name"]["value"].strip())
        for node in nodes
        if not node["ignored"] and "name" in node
    ]
    return [(role, name) for role, name in shown if role in ROLES]


def test_every_control_has_a_name(visit: Visit) -> None:
    page = visit()
    ask_and_wait(page, PICTURE_QUESTION)
    page.get_by_text("Settings").press("Enter")
    page.evaluate(RENDER, "- [ ] a\n- [x] b\n\n[](http://127.0.0.1/x) [ ]()\n\n```\ncode\n```")
    found = controls(page)
    page.get_by_role("button", name="Edit").first.click()
    found += controls(page)
    page.get_by_role("button", name="Log out").click()
    expect(page.locator("#key")).to_be_focused()
    found += controls(page)
    assert [control for control in found if not control[1]] == []
    assert {role for role, _ in found} == ROLES
    assert {
        ("checkbox", "To do"),
        ("checkbox", "Done"),
        ("link", "http://127.0.0.1/x"),
        ("textbox", "API key"),
        ("button", "Submit"),
    } <= {*found}


def test_a_thought_is_open_while_it_lasts(visit: Visit) -> None:
    page = visit(thinking="on")
    ask(page, LONG_QUESTION)
    thought = page.locator("details.thought")
    expect(thought.locator(".reasoning")).to_be_visible()
    expect(thought.locator("summary")).to_have_text("Thinking")
    press(page, "Stop")
    until(page, "Stopped after")
    expect(thought.locator("summary")).to_contain_text("Thought for")
    expect(thought.locator(".reasoning")).to_be_hidden()


def test_settings_reach_the_api(visit: Visit) -> None:
    page = visit(thinking="off")
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("0.25")
    page.get_by_label("Max tokens").fill("3")
    page.focus("#box")
    with page.expect_request(CHAT) as sent:
        ask(page, QUESTION)
    body = sent.value.post_data_json
    assert (body["temperature"], body["max_tokens"], body["chat_template_kwargs"]) == (0.25, 3, {"thinking": False})
    until(page, "3 tokens in .* token limit")


def test_an_empty_page_shows_examples_and_a_question_unlike_them_is_noted(visit: Visit) -> None:
    page = visit()
    page.get_by_text("Settings").click()
    page.get_by_label("Max tokens").fill("3")
    examples = page.locator(".invitation button")
    expect(examples).to_have_text(PROMPTS[:2])
    examples.first.click()
    until(page, "token limit.$")
    page.focus("#box")
    ask(page, "more")
    until(
        page,
        "token limit. The model was trained on conversations with one question. Start a new chat for the next question.$",
    )
    press(page, "New chat")
    ask(page, "sub 1-2")
    until(page, "token limit. This prompt looks like nothing that the model was trained on.$")


def test_a_model_that_does_not_think_has_no_switch(visit: Visit) -> None:
    page = visit()

    def plain(route: playwright.Route) -> None:
        card = route.fetch().json()
        card["data"][0] |= {"thinks": False, "examples": []}
        route.fulfill(json=card)

    page.route("**/v1/models", plain)
    page.reload()
    page.get_by_text("Settings").click()
    expect(page.get_by_label("Temperature")).to_be_visible()
    assert not page.get_by_label("Thinking").is_visible()
    assert page.locator(".invitation").inner_text() == "Ask taught something."


def test_a_reply_under_way_gives_way_to_another_and_to_a_new_chat(visit: Visit, taught: Server) -> None:
    page = visit()
    before = taught.metric("cancelled_total")
    ask(page, LONG_QUESTION)
    for count in (1, 2):  # the second ends a reply that Retry itself began
        expect(page.locator("article.assistant")).to_contain_text("la la la")
        press(page, "Retry")
        taught.wait("cancelled_total", before + count, WAIT / 1000)
    expect(page.locator("article.assistant")).to_contain_text("la la la")
    expect(page.locator("article")).to_have_count(2)
    press(page, "New chat")
    taught.wait("cancelled_total", before + 3, WAIT / 1000)
    ask_and_wait(page, QUESTION)
    expect(page.locator("article")).to_have_count(2)
    assert "la la" not in page.locator("#chat").inner_text()


def test_errors_are_shown_as_they_are(visit: Visit, taught: Server) -> None:
    first, second = visit(), visit()
    first.bring_to_front()
    ask(first, LONG_QUESTION)
    expect(first.locator("#chat")).to_contain_text("la la la")
    second.bring_to_front()
    ask(second, QUESTION)
    until(second, "error 429")
    assert second.locator("#box").input_value() == QUESTION and second.locator("article").count() == 0
    os.kill(taught.engine(), signal.SIGKILL)
    until(first, "engine died")
    expect(first.locator("#status.error")).to_have_count(1)
    expect(first.locator("article.assistant")).to_contain_text("la la la")
    taught.wait("engine_up", 1, WAIT / 1000)
    second.focus("#box")
    second.keyboard.press("Enter")
    until(second)


def test_each_tenant_sees_only_its_own_conversation(visit: Visit, taught: Server, other_key: str) -> None:
    page = visit()
    ask_and_wait(page, QUESTION)
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    stranger = page.context.new_page()  # another tab of the same browser
    stranger.goto(taught.url)
    expect(stranger.locator("#key")).to_be_focused()
    stranger.keyboard.type(taught.key[:-1])
    stranger.keyboard.press("Enter")
    expect(stranger.get_by_role("alert")).to_have_text("This server does not know this key.")
    stranger.locator("#key").fill("")
    log_in(stranger, other_key)
    expect(stranger.locator("article")).to_have_count(0)
    page.route("**/v1/models", lambda route: route.fulfill(status=401, json={"error": {"message": "unknown"}}))
    page.reload()  # the server does not know the key any more: the next one may be of another tenant
    expect(page.get_by_role("alert")).to_contain_text("does not know")
    page.unroute("**/v1/models")
    log_in(page, other_key)
    expect(page.locator("article")).to_have_count(0)
    ask_and_wait(page, QUESTION)
    press(page, "Log out")
    expect(page.locator("#key")).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0
    log_in(page, taught.key)
    expect(page.locator("article")).to_have_count(0)


@pytest.mark.parametrize(("width", "height", "scheme"), [(360, 740, "dark"), (360, 740, "light"), (1400, 900, "dark")])
def test_narrow_and_wide_light_and_dark(visit: Visit, width: int, height: int, scheme: str) -> None:
    page = visit(width, height, scheme)
    ask_and_wait(page, QUESTION)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    send = page.get_by_role("button", name="Send").bounding_box()
    assert send is not None and send["x"] + send["width"] <= width and send["y"] + send["height"] <= height
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", shade)[:3])) < 3 * 128) == (scheme == "dark"), shade


def test_a_page_goes_on_when_the_server_starts_again(visit: Visit, taught: Server, keys: Path) -> None:
    """The last test here."""
    page = visit()
    ask_and_wait(page, QUESTION)
    assert stop(taught) == 0
    ask(page, PICTURE_QUESTION)
    until(page, "cannot be reached")
    expect(page.locator("article")).to_have_count(2)
    assert page.locator("#box").input_value() == PICTURE_QUESTION
    port = taught.url.rpartition(":")[2]
    taught.process = start(taught.log.parent / "taught", keys, taught.log, f"port={port}", "queue=1").process
    page.focus("#box")
    page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(4)
    until(page)
