// The conversation: its turns, the request that continues it, and a reply while it is streamed.
// A turn is {role: "user", content} or {role: "assistant", content, reasoning, seconds}.

// Return the API request that continues a conversation. Reasoning is not sent to the model again.
export function requestOf(model, turns, settings) {
  const messages = [];
  for (const { role, content } of turns) {
    // An empty reply stands for a missing one, because no chat format can write two questions in a row.
    if (messages.at(-1)?.role === role) messages.push({ role: "assistant", content: "" });
    messages.push({ role, content });
  }
  const body = { model, messages };
  if (Number.isFinite(settings.temperature)) body.temperature = settings.temperature;
  if (settings.maxTokens > 0) body.max_tokens = settings.maxTokens;
  if (settings.thinking !== "auto") body.chat_template_kwargs = { thinking: settings.thinking === "on" };
  return body;
}

// Return the turns up to the last question, for a retry.
export function uptoQuestion(turns) {
  return turns.slice(0, turns.findLastIndex((turn) => turn.role === "user") + 1);
}

// A reply that is being streamed into the turn `turn`. `clock` returns milliseconds.
export class Reply {
  constructor(clock = () => performance.now()) {
    this.clock = clock;
    this.began = clock();
    this.turn = { role: "assistant", content: "", reasoning: "", seconds: null };
    this.tokens = 0;
    this.reason = null;
  }

  get seconds() {
    return (this.clock() - this.began) / 1000;
  }

  get empty() {
    return !this.turn.content && !this.turn.reasoning.trim();
  }

  // The current phase in one word. It changes rarely, because screen readers announce every change.
  get phase() {
    return this.turn.content ? "Answering" : this.empty ? "Waiting" : "Thinking";
  }

  add(chunk) {
    this.tokens = chunk.usage?.completion_tokens ?? this.tokens;
    for (const { delta, finish_reason } of chunk.choices) {
      this.reason = finish_reason ?? this.reason;
      this.turn.reasoning += delta.reasoning_content ?? "";
      if (delta.content) this.endThinking();
      this.turn.content += delta.content ?? delta.refusal ?? "";
    }
  }

  // Note how long the model has thought, once.
  endThinking() {
    this.turn.seconds ??= this.seconds;
  }

  // Return a line with the number of tokens, the time and the speed.
  summary() {
    const time = this.seconds;
    const rate = time > 0 && this.tokens > 1 ? `, ${Math.round(this.tokens / time)} tokens per second` : "";
    const cut = this.reason === "length" ? " The reply reached the token limit." : "";
    return `${this.tokens} tokens in ${time.toFixed(1)} s${rate}.${cut}`;
  }
}
