// Ollama's client for JavaScript against a server; prints what it got as JSON.
// node ollama_client.mjs http://127.0.0.1:8000
import { Ollama } from "ollama";

const client = new Ollama({ host: process.argv[2] });
const model = "tiny";
const options = { temperature: 0 };
const messages = [{ role: "user", content: "What is 12 + 30?" }];
const product = [{ role: "user", content: "What is 23 * 17?" }];
const tools = [{
  type: "function",
  function: {
    name: "calculator",
    description: "Calculates",
    parameters: {
      type: "object",
      properties: { expression: { type: "string" } },
      required: ["expression"],
    },
  },
}];
const got = {};

got.models = (await client.list()).models.map((each) => each.name);
got.version = (await client.version()).version;
got.show = (await client.show({ model })).capabilities;
got.ps = (await client.ps()).models.map((each) => each.name);

const answer = await client.chat({ model, messages, options });
got.chat = answer.message.content;
got.count = answer.eval_count;

got.stream = "";
for await (const part of await client.chat({ model, messages, options, stream: true })) {
  got.stream += part.message.content;
}

got.generate = (await client.generate({ model, prompt: messages[0].content, options })).response;

const called = await client.chat({ model, messages: product, options, tools });
const [call] = called.message.tool_calls;
got.called = call.function;
const result = { role: "tool", content: "391", tool_name: call.function.name };
const last = [...product, called.message, result];
got.tools = (await client.chat({ model, messages: last, options, tools })).message.content;

const format = {
  type: "object",
  properties: { sum: { type: "integer" } },
  required: ["sum"],
  additionalProperties: false,
};
const json = await client.chat({
  model, messages, format, options: { ...options, num_predict: 60 },
});
got.format = JSON.parse(json.message.content);

got.embeddings = (await client.embed({ model, input: ["A dog ran.", "A cat slept."] })).embeddings;

got.errors = [];
for (const wrong of [{ model: "big" }, { think: true }]) {
  try {
    await client.chat({ model, messages, ...wrong });
  } catch (error) {
    got.errors.push([error.status_code, error.message]);
  }
}

// A client that goes away in mid-stream.
const abandoned = await client.chat({ model, messages, options, stream: true });
for await (const part of abandoned) {
  abandoned.abort();
  got.aborted = part.message.content.length > 0;
  break;
}

console.log(JSON.stringify(got));
