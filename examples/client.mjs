// Ask the proxy something and print the answer as it comes. What client.py does, in Node.
//
// npm install --prefix examples                           once: the official client
// node examples/client.mjs                                the simulated model, which needs no key
// node examples/client.mjs --model gpt-4o "Your question"

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";

import OpenAI from "openai";

const QUESTION =
  "What have I got this week, and how will the weather be there? If the hike gets wet, move it to Sunday at ten, " +
  "and where else it rains, note down an umbrella an hour before.";
// The simulated model can't think. This tells it which calls to write, and which results each one needs.
const CHEAT_SHEET = new URL("cheat_sheet.json", import.meta.url);

const { values: args, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    model: { type: "string", default: "simulated" },
    url: { type: "string", default: "http://127.0.0.1:8787/v1" },
    policy: { type: "string", default: "auto" },
  },
});
const simulated = args.model === "simulated";
let question = positionals[0] ?? QUESTION;
if (simulated && question === QUESTION) question += `\n<task>${readFileSync(CHEAT_SHEET, "utf-8")}</task>`;

// The simulated model needs no key; for any other OPENAI_API_KEY is used.
const client = new OpenAI({ baseURL: args.url, ...(simulated && { apiKey: "none" }) });
const stream = await client.chat.completions.create(
  {
    model: args.model,
    messages: [{ role: "user", content: question }],
    stream: true,
    stream_options: { include_usage: true },
  },
  { headers: { "x-asynclm-policy": args.policy } },
);
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
  if (chunk.usage) console.log("\n\nusage:", chunk.usage.asynclm);
}
