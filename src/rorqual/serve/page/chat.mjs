// The chat page: login, conversation and settings. All of them are stored in this tab only (sessionStorage).

import { ApiError, fetchCard, streamChat } from "./api.mjs";
import { Reply, requestOf, uptoQuestion } from "./conversation.mjs";
import { copyButton, render } from "./markdown.mjs";

const IDLE = "Enter sends, Shift+Enter starts a new line.";
const UNLIKE = " This prompt looks like nothing that the model was trained on.";
const SECOND = " The model was trained on conversations with one question. Start a new chat for the next question.";
const STORE = "rorqual";
const TICK = 100; // milliseconds between two drawings of a reply
const FREED = 2000; // milliseconds within which the server frees the place of a stopped reply
const byId = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const { chat, box, status } = byId;

let card = null; // what the server says about its model
let tab = stored(); // {key, turns, settings}
let running = null; // the AbortController of the reply that is being streamed
let lastStop = -Infinity; // when a reply was stopped, in milliseconds

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) ?? {};
  } catch {
    return {};
  }
}

function store() {
  try {
    sessionStorage.setItem(STORE, JSON.stringify(tab));
  } catch {
    // The conversation exceeds the browser's limit. It goes on, but does not survive a reload.
  }
}

// ---- login

function showLogin(error = "") {
  chat.replaceChildren();
  byId["login-error"].textContent = error;
  byId.page.hidden = true;
  byId.login.hidden = false;
  byId.key.focus();
}

async function logIn(key) {
  try {
    card = await fetchCard(key);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showLogin(error.status === 401 ? "This server does not know this key." : error.explanation);
    return;
  }
  // Another key may be another tenant's, who sees nothing of this conversation.
  if (tab.key !== key) tab = { key, turns: [], settings: { thinking: "auto", temperature: card.temperature, maxTokens: 0 } };
  store();
  byId.key.value = "";
  byId.login.hidden = true;
  byId.page.hidden = false;
  document.title = byId.model.textContent = card.id;
  byId["thinking-label"].hidden = !card.thinks;
  showSettings();
  say(IDLE);
  draw();
  box.focus();
}

byId.login.addEventListener("submit", (event) => {
  event.preventDefault();
  logIn(byId.key.value.trim());
});
byId["log-out"].addEventListener("click", () => {
  running?.abort();
  tab = {};
  sessionStorage.removeItem(STORE);
  location.reload();
});

// ---- settings

function showSettings() {
  byId.thinking.value = tab.settings.thinking;
  byId.temperature.value = tab.settings.temperature ?? "";
  byId["max-tokens"].value = tab.settings.maxTokens;
}

byId.settings.addEventListener("input", () => {
  const temperature = byId.temperature.valueAsNumber;
  tab.settings = {
    thinking: card.thinks ? byId.thinking.value : "auto",
    temperature: Number.isFinite(temperature) ? temperature : null, // null: the server's default
    maxTokens: Math.trunc(byId["max-tokens"].valueAsNumber) || 0,
  };
  store();
});

// ---- the conversation

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
}

function button(label, text, onClick) {
  const made = element("button", "", text);
  Object.assign(made, { type: "button", ariaLabel: label });
  made.addEventListener("click", onClick);
  return made;
}

// Draw the whole conversation.
function draw() {
  chat.replaceChildren(...(tab.turns.length ? tab.turns.map(drawn) : [invitation()]));
  chat.scrollTop = chat.scrollHeight;
  byId.retry.hidden = !tab.turns.length;
}

function invitation() {
  const made = element("p", "invitation", `Ask ${card.id} something.`);
  if (card.examples.length) made.append(" For example: ");
  for (const example of card.examples) made.append(button(`Ask ${example}`, example, () => ask([], example)), " ");
  return made;
}

function drawn(turn, index) {
  const content = element("div", "content");
  const copy = copyButton(() => turn.content, "Copy");
  if (turn.role === "user") {
    const edit = button("Edit", "Edit", () => editQuestion(made, index));
    const made = element("article", "user", content, element("div", "tools", edit, copy));
    made.ariaLabel = "Question";
    render(content, turn.content);
    return made;
  }
  const thought = element("details", "thought", element("summary", ""), element("div", "reasoning"));
  const made = element("article", "assistant", thought, content, element("div", "tools", copy));
  made.ariaLabel = "Reply";
  drawReply(made, turn);
  return made;
}

// Draw a reply anew. The reasoning is open while the model thinks.
function drawReply(made, turn, thinks = false) {
  const [thought, content] = made.children;
  const reasoning = turn.reasoning.replace(/^\n+|\s+$/g, "");
  thought.hidden = !reasoning;
  if (thought.dataset.thinks !== String(thinks)) thought.open = thinks;
  thought.dataset.thinks = thinks;
  thought.firstChild.textContent = thinks ? "Thinking" : `Thought for ${(turn.seconds ?? 0).toFixed(1)} s`;
  if (thought.dataset.length !== String(reasoning.length)) render(thought.lastChild, reasoning);
  thought.dataset.length = reasoning.length;
  render(content, turn.content);
}

function editQuestion(article, index) {
  const area = element("textarea", "");
  Object.assign(area, { value: tab.turns[index].content, ariaLabel: "Question", rows: 3 });
  const submit = () => ask(tab.turns.slice(0, index), area.value);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") draw();
    else if (isSend(event)) submit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const tools = element("div", "tools", button("Submit", "Submit", submit), button("Cancel", "Cancel", draw));
  article.replaceChildren(area, tools);
  area.focus();
}

function say(text, isError = false) {
  if (status.textContent !== text) status.textContent = text;
  status.classList.toggle("error", isError);
}

// ---- a reply

function stopReply() {
  if (!running) return;
  running.abort();
  lastStop = performance.now();
}

// Stream a reply. A full queue is tried again while a stopped reply may still take a place in it.
async function streamSoon(body, signal, onChunk) {
  for (;;) {
    try {
      return await streamChat(tab.key, body, signal, onChunk);
    } catch (error) {
      if (error.status !== 429 || performance.now() > lastStop + FREED) throw error;
    }
    await new Promise((wake) => setTimeout(wake, TICK));
  }
}

// Ask `text` after the turns `before`. A reply that is still streamed is stopped.
async function ask(before, text) {
  if (!text.trim()) return;
  stopReply();
  const stopping = (running = new AbortController());
  const { signal } = stopping;
  const question = { role: "user", content: text };
  const reply = new Reply();
  const body = requestOf(card.id, [...before, question], tab.settings);
  tab.turns = [...before, question, reply.turn];
  draw();
  store();
  show(true);
  say("Waiting. Esc stops.");
  const article = chat.lastChild;
  const timer = drawRegularly(article, reply);
  let headers, failure;
  try {
    headers = await streamSoon(body, signal, (chunk) => reply.add(chunk));
  } catch (error) {
    failure = error;
  }
  timer.stop();
  if (running !== stopping) return; // a newer question, a new chat or a logout has replaced this reply
  running = null;
  reply.endThinking();
  show(false);
  finish(article, reply, text, { failure: signal.aborted ? null : failure, stopped: signal.aborted, headers, first: !before.length });
}

// Draw a reply at most every `TICK` milliseconds. A reply that takes long to draw is drawn less often.
function drawRegularly(article, reply) {
  let last = "", timer;
  const tick = () => {
    const began = performance.now();
    const now = `${reply.turn.reasoning.length} ${reply.turn.content.length}`;
    if (now !== last) {
      const atEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 40;
      drawReply(article, reply.turn, !reply.turn.content);
      if (atEnd) chat.scrollTop = chat.scrollHeight;
      say(`${reply.phase}. Esc stops.`);
      store();
    }
    last = now;
    timer = setTimeout(tick, Math.max(TICK, 5 * (performance.now() - began)));
  };
  timer = setTimeout(tick, TICK);
  return { stop: () => clearTimeout(timer) };
}

function finish(article, reply, text, { failure, stopped, headers, first }) {
  if (reply.empty) {
    tab.turns = tab.turns.slice(0, failure ? -2 : -1);
    draw();
    if (failure) box.value = box.value.trim() ? `${text}\n${box.value}` : text; // no answer: the question returns to the box
  } else {
    drawReply(article, reply.turn);
  }
  store();
  if (failure instanceof ApiError) {
    say(failure.explanation, true);
    if (failure.status === 401) showLogin("This server does not know this key any more.");
    return;
  }
  if (failure) throw failure;
  const unlike = headers?.get("x-rorqual-unlike") ? UNLIKE : "";
  const second = !first && card.examples.length ? SECOND : "";
  say((stopped ? `Stopped after ${reply.seconds.toFixed(1)} s.` : reply.summary()) + unlike + second);
}

function show(isRunning) {
  byId.send.hidden = isRunning;
  byId.stop.hidden = !isRunning;
}

// ---- keys and buttons

const isSend = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

function send() {
  if (running) return;
  const text = box.value;
  if (!text.trim()) return;
  box.value = "";
  fit();
  ask(tab.turns, text);
}

function stop() {
  stopReply();
  box.focus();
}

// Make the box as high as its text, up to six lines.
function fit() {
  box.rows = Math.min(6, box.value.split("\n").length);
}

box.addEventListener("input", fit);
box.addEventListener("keydown", (event) => {
  if (!isSend(event)) return;
  event.preventDefault();
  send();
});
byId.message.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) stop();
});
addEventListener("pagehide", () => tab.key && store());
byId.stop.addEventListener("click", stop);
byId.retry.addEventListener("click", () => {
  const turns = uptoQuestion(tab.turns);
  ask(turns.slice(0, -1), turns.at(-1).content);
});
byId["new-chat"].addEventListener("click", () => {
  stopReply();
  running = null;
  tab.turns = [];
  store();
  show(false);
  say(IDLE);
  draw();
  box.focus();
});

if (tab.key) logIn(tab.key);
else showLogin();
