// Let a tool be called through the streams of OpenAI's SDK and of Vercel's, and print what came.
//
//     node tools.mjs URL DIRECTORY      DIRECTORY/node_modules holds the clients

import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [url, directory] = process.argv.slice(2);
const require = createRequire(join(directory, "clients.js"));
const load = (name) => import(pathToFileURL(require.resolve(name)));

const messages = [{ role: "user", content: "Look here." }];
const parameters = {
  type: "object",
  properties: { where: { enum: ["here", "there"] } },
  required: ["where"],
};

const { default: OpenAI } = await load("openai");
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const stream = openai.chat.completions.stream({
  model: "code",
  messages,
  max_tokens: 40,
  temperature: 0,
  tools: [{ type: "function", function: { name: "look", parameters } }],
  tool_choice: { type: "function", function: { name: "look" } },
});
const whole = await stream.finalChatCompletion();
const [call] = whole.choices[0].message.tool_calls;
const one = {
  id: whole.id,
  name: call.function.name,
  arguments: call.function.arguments,
  reason: whole.choices[0].finish_reason,
};

const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { streamText, jsonSchema } = await load("ai");
const running = streamText({
  model: createOpenAICompatible({ name: "journeyman", baseURL: `${url}/v1` })("code"),
  messages,
  maxOutputTokens: 40,
  temperature: 0,
  tools: { look: { description: "look", inputSchema: jsonSchema(parameters) } },
  toolChoice: { type: "tool", toolName: "look" },
});
const other = { name: "", arguments: "", reason: "" };
for await (const part of running.fullStream) {
  if (part.type === "tool-input-start") other.name = part.toolName;
  if (part.type === "tool-input-delta") other.arguments += part.delta;
  if (part.type === "finish") other.reason = part.finishReason;
}
other.id = (await running.response).id;

console.log(JSON.stringify({ openai: one, vercel: other }));
