// Ask a server through the clients of the npm registry, and print what they understood as JSON.
//
//     node clients.mjs URL DIRECTORY      DIRECTORY/node_modules holds the clients

import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [url, directory] = process.argv.slice(2);
const require = createRequire(join(directory, "clients.js"));
const load = (name) => import(pathToFileURL(require.resolve(name)));

const messages = [{ role: "user", content: "add" }];
const tool = { name: "look", parameters: { type: "object", properties: { where: { type: "string" } } } };
const found = {};

const { default: OpenAI } = await load("openai");
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const whole = await openai.chat.completions.create({ model: "code", messages });
found.openai = { id: whole.id, text: whole.choices[0].message.content };
const stream = openai.chat.completions.stream({ model: "code", messages });
const final = await stream.finalChatCompletion();
found.openaiStream = { id: final.id, text: final.choices[0].message.content };
const called = await openai.chat.completions
  .stream({ model: "code", messages, tools: [{ type: "function", function: tool }] })
  .finalChatCompletion();
found.openaiTool = called.choices[0].message.tool_calls[0].function.arguments;
const response = await openai.responses.create({ model: "code", input: "add" });
found.openaiResponse = { id: response.id, text: response.output_text };
try {
  await openai.chat.completions.create({ model: "gpt-4", messages });
} catch (error) {
  found.openaiError = { status: error.status, code: error.code };
}

const { default: Anthropic } = await load("@anthropic-ai/sdk");
const claude = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const message = await claude.messages
  .stream({ model: "code", max_tokens: 64, messages })
  .finalMessage();
found.anthropicStream = { id: message.id, text: message.content[0].text };

const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { generateText, streamText, jsonSchema } = await load("ai");
const model = createOpenAICompatible({ name: "journeyman", baseURL: `${url}/v1` })("code");
const generated = await generateText({ model, messages });
found.vercel = { id: generated.response.id, text: generated.text };
const running = streamText({ model, messages });
let text = "";
for await (const part of running.textStream) text += part;
found.vercelStream = { id: (await running.response).id, text };
const tools = { look: { description: "look", inputSchema: jsonSchema(tool.parameters) } };
const calling = streamText({ model, messages, tools });
found.vercelTool = (await calling.toolCalls)[0].input;

console.log(JSON.stringify(found));
