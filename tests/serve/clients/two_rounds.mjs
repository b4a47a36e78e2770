// OpenAI's client for Node: an answer whole and streamed, a tool called in two rounds, JSON. One JSON object on standard output.
import OpenAI from "openai";

const [baseURL, apiKey, question, spec] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const thinking = { chat_template_kwargs: { thinking: false } };
const asked = { model: "caller", temperature: 0, max_tokens: 80, tools: [JSON.parse(spec)], ...thinking };
const messages = [{ role: "user", content: question }];

const first = await client.chat.completions.create({ ...asked, messages });
const { message, finish_reason } = first.choices[0];

const parts = {};
let ended;
const stream = await client.chat.completions.create({ ...asked, messages, stream: true });
for await (const chunk of stream) {
  for (const call of chunk.choices[0]?.delta?.tool_calls ?? []) {
    parts[call.index] ??= { name: "", arguments: "" };
    parts[call.index].name += call.function?.name ?? "";
    parts[call.index].arguments += call.function?.arguments ?? "";
  }
  ended = chunk.choices[0]?.finish_reason ?? ended;
}

const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "3" };
const second = await client.chat.completions.create({ ...asked, messages: [...messages, message, result] });

const schema = { type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"], additionalProperties: false };
const json = await client.chat.completions.create({
  model: "caller", messages, max_tokens: 60, ...thinking,
  response_format: { type: "json_schema", json_schema: { name: "ok", schema } },
});

let refused;
try {
  await client.chat.completions.create({ ...asked, messages, n: 1e9 });
} catch (error) {
  refused = { status: error.status, param: error.param, kind: error.constructor.name };
}

console.log(JSON.stringify({
  calls: message.tool_calls.map((call) => call.function), finish_reason, parts, ended,
  answer: second.choices[0].message.content, json: json.choices[0].message.content, refused,
  models: (await client.models.list()).data.map((model) => model.id),
}));
