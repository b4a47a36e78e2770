// OpenAI's client for Node: a file, a job, its events and checkpoints, the tuned model. One JSON object on standard output.
import OpenAI from "openai";
import fs from "node:fs";

const [baseURL, apiKey, path, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

const file = await client.files.create({ file: fs.createReadStream(path), purpose: "fine-tune" });
const method = { type: "supervised", supervised: { hyperparameters: { n_epochs: 1 } } };
let job = await client.fineTuning.jobs.create({ model, training_file: file.id, method, suffix: "node", seed: 5 });
const other = await client.fineTuning.jobs.create({ model, training_file: file.id, method });
const cancelled = await client.fineTuning.jobs.cancel(other.id);
while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
  await new Promise((resolve) => setTimeout(resolve, 200));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
const events = [];
for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 2 })) events.push(event.message);
const checkpoints = await client.fineTuning.jobs.checkpoints.list(job.id);
const listed = [];
for await (const one of client.fineTuning.jobs.list()) listed.push(one.id);
const result = await (await client.files.content(job.result_files[0])).text();
const reply = await client.chat.completions.create({
  model: job.fine_tuned_model, messages: [{ role: "user", content: "1+2" }], max_tokens: 2,
});
const models = (await client.models.list()).data.map((one) => one.id);
const gone = await client.models.delete(job.fine_tuned_model);
const deleted = await client.files.delete(file.id);

let refused;
try {
  await client.fineTuning.jobs.create({ model, training_file: file.id });
} catch (error) {
  refused = { status: error.status, param: error.param, kind: error.constructor.name };
}

console.log(JSON.stringify({
  filename: file.filename, status: job.status, cancelled: cancelled.status, events, checkpoints: checkpoints.data.length,
  listed: [job.id, other.id].every((id) => listed.includes(id)), model: reply.model === job.fine_tuned_model,
  served: models.includes(job.fine_tuned_model), gone: gone.deleted, deleted: deleted.deleted, refused,
  head: Buffer.from(result, "base64").toString().split("\n")[0],
}));
