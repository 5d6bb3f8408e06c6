// The official JavaScript client against a gateway that test_openai_js.py started. Its backend is a stub: the tests
// set what it does and see what it did over the stub's own control routes.

import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import OpenAI from "openai";

const { GATEWAY_URL, GATEWAY_KEY, BACKEND_URL } = process.env;
const connect = (options = {}) =>
  new OpenAI({ baseURL: `${GATEWAY_URL}/v1`, apiKey: GATEWAY_KEY, maxRetries: 0, ...options });
const client = connect();
const messages = [{ role: "user", content: "What floats on the harbour?" }];
const ask = { model: "ratchet", messages };
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"] },
  },
};
const healthy = { fault: "none", fault_probability: 0, fault_next: 0, fault_after_tokens: 0, tokens_per_s: 0 };

async function backend(knobs) {
  const response = await fetch(`${BACKEND_URL}/_stub/knobs`, { method: "POST", body: JSON.stringify(knobs) });
  assert.equal(response.status, 200);
}

async function backendState() {
  return (await fetch(`${BACKEND_URL}/_stub/state`)).json();
}

// The stub is in another process, where no event can be waited for.
async function generationEnded() {
  for (let attempt = 0; attempt < 500; attempt++) {
    const state = await backendState();
    if (state.generating === 0) return state;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail("generation goes on");
}

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

afterEach(() => backend(healthy));

test("a plain answer, with the race's facts in body and headers", async () => {
  const { data, response } = await client.chat.completions.create({ ...ask, best_of: 3 }).withResponse();
  assert.equal(data.object, "chat.completion");
  assert.equal(data.choices[0].finish_reason, "stop");
  assert.ok(data.choices[0].message.content);
  assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
  assert.deepEqual([data.best_of_n.n, data.best_of_n.selection], [3, "scored"]);
  assert.equal(response.headers.get("x-bon-n"), "3");
  assert.equal(data._request_id, response.headers.get("x-request-id"));
});

for (const best_of of [1, 4]) {
  test(`a stream of best of ${best_of} is read to its end`, async () => {
    const whole = await client.chat.completions.create({ ...ask, best_of, seed: 3 });
    const chunks = await collect(
      await client.chat.completions.create({
        ...ask, best_of, seed: 3, stream: true, stream_options: { include_usage: true },
      }),
    );
    const choices = chunks.flatMap((chunk) => chunk.choices);
    assert.equal(choices.map((choice) => choice.delta.content ?? "").join(""), whole.choices[0].message.content);
    assert.equal(choices.at(-1).finish_reason, "stop");
    assert.ok(choices.slice(0, -1).every((choice) => choice.finish_reason === null));
    assert.deepEqual(chunks.at(-1).usage, whole.usage);
    assert.ok(chunks.slice(0, -1).every((chunk) => chunk.usage === null));
  });
}

test("the client's own stream helper puts the answer together", async () => {
  const stream = client.chat.completions.stream({ ...ask, best_of: 3, seed: 3 });
  const whole = await client.chat.completions.create({ ...ask, best_of: 3, seed: 3 });
  assert.equal(await stream.finalContent(), whole.choices[0].message.content);
});

test("tools make the round trip", async () => {
  const asked = await client.chat.completions.create({ ...ask, tools: [weather], tool_choice: "required", best_of: 3 });
  const { message, finish_reason } = asked.choices[0];
  const [call] = message.tool_calls;
  assert.equal(finish_reason, "tool_calls");
  assert.equal(call.function.name, "weather");
  assert.equal(typeof JSON.parse(call.function.arguments).place, "string");
  const result = { role: "tool", tool_call_id: call.id, content: "Rain." };
  const answered = await client.chat.completions.create({
    ...ask, messages: [...messages, message, result], tools: [weather], tool_choice: "none", best_of: 3,
  });
  assert.ok(answered.choices[0].message.content);
});

for (const best_of of [1, 3]) {
  test(`a streamed tool call of best of ${best_of} is put together`, async () => {
    const request = { ...ask, tools: [weather], tool_choice: "required", best_of, seed: 5 };
    const whole = await client.chat.completions.create(request);
    const streamed = await client.chat.completions.stream(request).finalChatCompletion();
    const [wholeCalls, streamedCalls] = [whole, streamed].map((answer) => answer.choices[0].message.tool_calls);
    const content = (calls) => calls.map((call) => [call.function.name, call.function.arguments]);
    assert.deepEqual(content(streamedCalls), content(wholeCalls));
    // TGI numbers its calls anew in each answer: the gateway gives each call an id of its own.
    const ids = [...streamedCalls, ...wholeCalls].map((call) => call.id);
    assert.equal(new Set(ids).size, ids.length);
    for (const id of ids) assert.match(id, /^[0-9a-f]{9}$/);
    assert.equal(streamed.choices[0].finish_reason, "tool_calls");
  });
}

test("n answers, with logprobs", async () => {
  const answer = await client.chat.completions.create({ ...ask, n: 3, best_of: 4, logprobs: true, top_logprobs: 2 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
  for (const choice of answer.choices) {
    // The backend tells the end token too, which is no part of the text.
    const said = choice.logprobs.content.map((token) => token.token).join("");
    assert.ok(said.startsWith(choice.message.content));
    assert.ok(choice.logprobs.content.every((token) => token.top_logprobs.length === 2));
  }
});

test("an answer that follows a JSON schema", async () => {
  const schema = { type: "object", properties: { masts: { type: "integer" } }, required: ["masts"] };
  const answer = await client.chat.completions.parse({
    ...ask, response_format: { type: "json_schema", json_schema: { name: "boat", strict: true, schema } },
  });
  assert.ok(Number.isInteger(JSON.parse(answer.choices[0].message.content).masts));
});

test("models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.deepEqual(names, ["ratchet"]);
  assert.equal((await client.models.retrieve("ratchet")).object, "model");
  await assert.rejects(client.models.retrieve("nope"), OpenAI.NotFoundError);
});

test("each of the caller's mistakes is its own exception", async () => {
  const refused = (fields, expected) => assert.rejects(client.chat.completions.create({ ...ask, ...fields }), expected);
  const failed = (kind, expected) => (error) => {
    assert.ok(error instanceof kind, error);
    for (const [name, value] of Object.entries(expected)) assert.equal(error[name], value);
    return true;
  };
  await refused({ reasoning_effort: "high" },
    failed(OpenAI.BadRequestError, { param: "reasoning_effort", code: "unsupported_parameter" }));
  await refused({ best_of: 10_000 },
    failed(OpenAI.BadRequestError, { param: "best_of", code: "invalid_value", type: "invalid_request_error" }));
  await refused({ model: "gpt-9" }, failed(OpenAI.NotFoundError, { code: "model_not_found" }));
  await refused({ messages: [{ role: "user", content: "a".repeat(1_000_000) }] }, failed(OpenAI.APIError, { status: 413 }));
  await assert.rejects(connect({ apiKey: "rk-guess" }).chat.completions.create(ask),
    failed(OpenAI.AuthenticationError, { code: "invalid_api_key" }));
});

test("a failing backend is an internal server error", async () => {
  for (const [fault_status, status, code] of [[500, 502, "backend_failed"], [504, 504, "backend_timeout"]]) {
    await backend({ fault: "status", fault_status, fault_probability: 1 });
    for (const stream of [false, true]) {
      await assert.rejects(client.chat.completions.create({ ...ask, stream }), (error) => {
        assert.ok(error instanceof OpenAI.InternalServerError);
        assert.deepEqual([error.status, error.code], [status, code]);
        return true;
      });
    }
  }
});

test("an error in mid-stream is thrown there", async () => {
  await backend({ tokens_per_s: 500, fault: "disconnect", fault_probability: 1, fault_after_tokens: 3 });
  const said = [];
  const stream = await client.chat.completions.create({ ...ask, best_of: 1, stream: true });
  await assert.rejects(async () => {
    for await (const chunk of stream) said.push(chunk.choices[0].delta.content);
  }, (error) => error instanceof OpenAI.APIError && error.code === "backend_unreachable");
  assert.ok(said.join(""));
});

test("nobody there is a connection error", async () => {
  const lost = connect({ baseURL: "http://127.0.0.1:1/v1" });
  await assert.rejects(lost.chat.completions.create(ask), OpenAI.APIConnectionError);
});

test("a client that times out ends all generation", async () => {
  await backend({ tokens_per_s: 2 });
  const before = await backendState();
  await assert.rejects(
    connect({ timeout: 500 }).chat.completions.create({ ...ask, best_of: 4 }),
    OpenAI.APIConnectionTimeoutError,
  );
  const after = await generationEnded();
  // Not "finished": the gateway's own trial draw, after the failure above, may end meanwhile.
  assert.equal(after.cancelled - before.cancelled, 4);
});

test("a stream aborted in the middle ends generation", async () => {
  await backend({ tokens_per_s: 20 });
  const before = await backendState();
  const stream = await client.chat.completions.create({ ...ask, best_of: 1, stream: true });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  stream.controller.abort();
  const after = await generationEnded();
  assert.deepEqual([after.finished - before.finished, after.cancelled - before.cancelled], [0, 1]);
});

// The last test: refusals lower the number of draws that the gateway gives this backend.
test("a rate limit says when to come back, and the client does", async () => {
  await backend({ fault: "status", fault_status: 429, fault_probability: 1 });
  await assert.rejects(client.chat.completions.create({ ...ask, best_of: 1 }), (error) => {
    assert.ok(error instanceof OpenAI.RateLimitError);
    assert.equal(error.headers.get("retry-after"), "1");
    return true;
  });
  // The backend recovers once the client has seen its first 429.
  const statuses = [];
  const watched = async (...request) => {
    const response = await fetch(...request);
    statuses.push(response.status);
    if (response.status === 429) await backend(healthy);
    return response;
  };
  const began = performance.now();
  const answer = await connect({ maxRetries: 1, fetch: watched }).chat.completions.create({ ...ask, best_of: 1 });
  assert.ok(answer.choices[0].message.content);
  assert.deepEqual(statuses, [429, 200]);
  assert.ok(performance.now() - began >= 990);
});
