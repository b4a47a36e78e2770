// The client of the server's API: the model's card, and streamed chat completions.

const UNREACHABLE = "The server cannot be reached. Try again.";
const BROKEN = "The connection ended before the reply did. Try again.";

// An error of the API with its HTTP status, or 0 if there was no response.
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  // One sentence for the user.
  get explanation() {
    const text = this.message.replace(/\.$/, "");
    return `${text.slice(0, 1).toUpperCase()}${text.slice(1)}.${this.status ? ` (error ${this.status})` : ""}`;
  }
}

async function request(path, key, options = {}) {
  const headers = { authorization: `Bearer ${key}`, ...options.headers };
  let response;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "omit", redirect: "error", ...options, headers });
  } catch (error) {
    throw options.signal?.aborted ? error : new ApiError(0, UNREACHABLE);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ApiError(response.status, body.error?.message ?? "The server gave no reason.");
}

// Return the served model's card.
export async function fetchCard(key) {
  return (await (await request("v1/models", key)).json()).data[0];
}

// Send a chat request and call `onChunk` for each chunk of its stream. Return the response's headers.
export async function streamChat(key, body, signal, onChunk) {
  const response = await request("v1/chat/completions", key, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let buffer = ""; ; ) {
    const { value, done } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new ApiError(0, BROKEN);
    });
    if (done) throw new ApiError(0, BROKEN);
    const events = (buffer + value).split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return response.headers;
      if (!event.startsWith("data: ")) continue; // a comment, which keeps the connection open
      const chunk = JSON.parse(event.slice("data: ".length));
      if (chunk.error) throw new ApiError(503, chunk.error.message);
      onChunk(chunk);
    }
  }
}
