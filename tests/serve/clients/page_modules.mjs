// Run the chat page's modules that need no browser. The arguments are the folder of the page and a JSON object of inputs. The
// output is one JSON object.
import { performance } from "node:perf_hooks";

const [folder, inputs] = process.argv.slice(2);
const { extract, pieces } = await import(`${folder}/formulas.mjs`);
const { requestOf, uptoQuestion, Reply } = await import(`${folder}/conversation.mjs`);
const { texts, long, requests, conversations, replies } = JSON.parse(inputs);

function withFormulas(text) {
  const { text: replaced, formulas } = extract(text);
  return { formulas, back: pieces(replaced).map((piece) => (typeof piece === "number" ? formulas[piece].source : piece)).join("") };
}

function milliseconds(text) {
  const began = performance.now();
  extract(text);
  return performance.now() - began;
}

function replyAfter(steps) {
  let now = 100_000;
  const reply = new Reply(() => now);
  return steps.map(({ wait = 0, chunk, stop }) => {
    now += wait;
    if (chunk) reply.add(chunk);
    if (stop) reply.endThinking();
    return { phase: reply.phase, empty: reply.empty, turn: { ...reply.turn }, summary: reply.summary() };
  });
}

process.stdout.write(JSON.stringify({
  texts: texts.map(withFormulas),
  long: long.map(([start, text, size]) => milliseconds(start + text.repeat(size / text.length))),
  requests: requests.map(([turns, settings]) => requestOf("tiny", turns, settings)),
  conversations: conversations.map(uptoQuestion),
  replies: replies.map(replyAfter),
}));
