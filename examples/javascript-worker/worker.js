// A worker for runwire in plain JavaScript: it renders invoices, for tasks such as
//
//   {"action": "request", "service": "invoices.render", "payload": {"customer": "Ada", "lines": [...]}}
//
// The protocol is all here; docs/actions.md explains it.

import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { connect, headers } from "@nats-io/transport-node";

const CHAIN = process.env.CHAIN ?? "1764";
const SUBJECT = `services.${CHAIN}.invoices.render`;
const WORK_MS = Number(process.env.WORK_MS ?? 100); // stands for work that takes its time

const results = new Map(); // run id -> promise of its result; one that has to outlive the process is kept in a database

class Refusal extends Error {} // the request is at fault: it would be again

const data = process.env.RUNWIRE_DATA_DIR ?? "../../data";
const read = (name) => readFileSync(`${data}/${name}`, "utf8").trim();
const [user, pass] = (process.env.RUNWIRE_TOKEN ?? read("token")).split(":");
const nc = await connect({
  name: "invoices",
  servers: read("bus.url"),
  user,
  pass,
  inboxPrefix: `_INBOX_${user}`,
  maxReconnectAttempts: -1,
  ignoreAuthErrorAbort: true, // logins fail while no adapter is up
});

// Several workers share the work: each request goes to one member of the queue group.
const requests = nc.subscribe(SUBJECT, { queue: "invoices" });
for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, stop);
await nc.flush(); // the broker knows of it
console.log(`listening to ${SUBJECT}`);

const underway = new Set();
for await (const request of requests) {
  const answer = handle(request).finally(() => underway.delete(answer));
  underway.add(answer);
}
await Promise.all(underway);
await nc.drain();

// Takes no more requests; what was begun is answered, unless that takes too long or the broker is away.
function stop() {
  requests.drain().catch(() => {});
  setTimeout(() => process.exit(1), Number(process.env.GRACE_MS ?? 10_000)).unref();
}

async function handle(request) {
  const run = request.headers.get("Run-Id");
  if (Date.parse(request.headers.get("Run-Deadline")) < Date.now()) return; // nobody waits for the answer any more
  console.log(`run ${run} attempt ${request.headers.get("Run-Attempt")}`);
  try {
    // A run can be asked for more than once, also while it is being worked on. It is carried out once.
    if (!results.has(run)) results.set(run, render(request.json()));
    request.respond(JSON.stringify(await results.get(run)));
  } catch (error) {
    results.delete(run);
    const final = error instanceof Refusal || error instanceof SyntaxError;
    const h = headers();
    h.set("Nats-Service-Error-Code", final ? "422" : "500"); // 4xx: not worth another try; anything else is
    h.set("Nats-Service-Error", final ? "cannot render this" : "failed");
    const code = final ? "invalid_invoice" : "render_failed";
    request.respond(JSON.stringify({ code, message: error.message }), { headers: h });
  }
}

async function render({ customer, lines }) {
  if (!Array.isArray(lines) || lines.length === 0) throw new Refusal("an invoice needs lines");
  await pause(WORK_MS);
  const total = lines.reduce((sum, line) => sum + line.amount * line.price, 0);
  const text = lines.map((line) => `${line.amount} x ${line.text}: ${line.amount * line.price}`).join("\n");
  return { customer, total, text: `${text}\ntotal: ${total}` };
}
