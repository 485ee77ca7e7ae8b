// OpenAI's client for JavaScript against a server; prints what it got as JSON.
// node openai_client.mjs http://127.0.0.1:8000
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const model = "tiny";
const temperature = 0;
const question = [{ role: "user", content: "What is 12 + 30?" }];
const product = [{ role: "user", content: "What is 23 * 17?" }];
const schema = {
  type: "object",
  properties: { expression: { type: "string" } },
  required: ["expression"],
};
const got = {};

got.models = [];
for await (const each of client.models.list()) got.models.push(each.id);

const answer = await client.chat.completions.create({ model, temperature, messages: question });
got.chat = answer.choices[0].message.content;

got.stream = "";
const stream_options = { include_usage: true };
for await (const chunk of await client.chat.completions.create({
  model, temperature, messages: question, stream: true, stream_options,
})) {
  got.stream += chunk.choices[0]?.delta.content ?? "";
  got.usage = chunk.usage ?? got.usage;
}

// The client calls the function itself and sends back what it returns, whole and streamed.
got.tools = [];
for (const stream of [false, true]) {
  const runner = client.chat.completions.runTools({
    model, temperature, messages: product, stream,
    tools: [{
      type: "function",
      function: {
        name: "calculator",
        description: "Calculates",
        parameters: schema,
        parse: JSON.parse,
        function: ({ expression }) => String(eval(expression)),
      },
    }],
  });
  got.tools.push(await runner.finalContent());
}

const completion = await client.completions.create({ model, temperature, prompt: "Once upon a" });
got.completion = completion.choices[0].text;

const embedding = await client.embeddings.create({ model, input: ["A dog ran.", "A cat slept."] });
got.embeddings = embedding.data.map((each) => Array.from(each.embedding));

got.events = [];
const responses = client.responses.stream({ model, temperature, input: "What is 12 + 30?" });
for await (const event of responses) got.events.push(event.type);
got.response = (await responses.finalResponse()).output_text;

const called = await client.responses.create({
  model, temperature, input: product,
  tools: [{ type: "function", name: "calculator", description: "Calculates", parameters: schema }],
});
got.called = called.output[0].arguments;

try {
  await client.chat.completions.create({ model, messages: question, reasoning_effort: "low" });
} catch (error) {
  got.error = [error.constructor.name, error.status, error.param];
}
console.log(JSON.stringify(got));
