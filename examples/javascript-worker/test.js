// The whole of it, as a user starts it: `runwire up`, the worker, tasks over HTTP. `make test-javascript` runs it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

const RUNWIRE = process.env.RUNWIRE ?? "../../.venv/bin/runwire";
const INVOICE = { customer: "Ada", lines: [{ text: "engine", amount: 2, price: 21 }] };
const RENDERED = { customer: "Ada", total: 42, text: "2 x engine: 42\ntotal: 42" };

let folder, api, token, up;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "runwire-"));
  const port = await freePort();
  const settings = { RUNWIRE_DATA_DIR: folder, RUNWIRE_HTTP_PORT: String(port), RUNWIRE_STORE_BYTES: "134217728" };
  up = start(RUNWIRE, ["up"], settings);
  await up.says("Ctrl-C stops everything.");
  api = `http://127.0.0.1:${port}`;
  token = (await readFile(join(folder, "token"), "utf8")).trim();
});

after(async () => {
  const worker = await startWorker({ GRACE_MS: "500" });
  await up.stop("SIGTERM");
  await worker.stop("SIGTERM"); // it ends although the broker has gone
  await rm(folder, { recursive: true });
});

test("the worker's answer is the run's result", async () => {
  const worker = await startWorker();
  const task = await createTask({ payload: INVOICE });
  const { status, body } = await call("POST", `/tasks/${task}/execute`);
  assert.deepEqual([status, body.code], [200, "DONE"]);
  assert.deepEqual((await call("GET", `/tasks/${task}`)).body.result, RENDERED);
  assert.equal(await worker.stop("SIGTERM"), 0);
});

test("what the worker refuses is not tried again", async () => {
  const worker = await startWorker();
  const task = await createTask({ payload: { customer: "Ada" } });
  const run = await begin(task);
  const { attempt, error } = await end(run);
  assert.deepEqual([attempt, error], [
    1, { code: "invalid_invoice", message: "invoices.render: an invoice needs lines" },
  ]);
  await worker.stop("SIGTERM");
});

test("a worker that is killed in the middle of a run is asked again when it is back", async () => {
  const first = await startWorker({ WORK_MS: "60000" });
  const task = await createTask({ payload: INVOICE, seconds: 2 });
  const run = await begin(task);
  await first.says(`run ${run.id} attempt 1`);
  await first.stop("SIGKILL");

  const second = await startWorker();
  const { code, attempt, result } = await end(run);
  assert.deepEqual([code, result], ["DONE", RENDERED]);
  assert.ok(attempt > 1, `attempt ${attempt}`);
  assert.ok(second.output.includes(`run ${run.id} attempt ${attempt}`), second.output);
  await second.stop("SIGTERM");
});

test("a worker that is stopped answers what it has begun", async () => {
  const worker = await startWorker({ WORK_MS: "500" });
  const run = await begin(await createTask({ payload: INVOICE }));
  await worker.says(`run ${run.id} attempt 1`);
  assert.equal(await worker.stop("SIGTERM"), 0);
  const { code, attempt } = await end(run);
  assert.deepEqual([code, attempt], ["DONE", 1]);
});

test("a client of the bus runs a task and hears of its end", async () => {
  const worker = await startWorker();
  const done = startClient(await createTask({ payload: INVOICE }));
  assert.equal(await done.ended, 0, done.output);
  const [accepted, begun, ended, result] = done.output.trim().split("\n");
  assert.match(accepted, /^run [0-9a-f-]{36} is accepted$/);
  assert.equal(begun, "dev.runwire.task.inprogress.v1 INPROGRESS attempt 1");
  assert.equal(ended, "dev.runwire.task.done.v1 DONE attempt 1");
  assert.deepEqual(JSON.parse(result), RENDERED);
  assert.ok(worker.output.includes(accepted.split(" ")[1]), "the service is told the run id that the client chose");

  const failed = startClient(await createTask({ payload: {} }));
  assert.equal(await failed.ended, 1, failed.output);
  assert.match(failed.output, /dev\.runwire\.task\.error\.v1 ERROR attempt 1\n.*"code":"invalid_invoice"/);
  await worker.stop("SIGTERM");
});

test("a second command is refused while the first is under way", async () => {
  const worker = await startWorker({ WORK_MS: "1500" });
  const task = await createTask({ payload: INVOICE });
  const first = startClient(task);
  await first.says("INPROGRESS");
  const second = startClient(task);
  assert.equal(await second.ended, 2);
  assert.equal(second.output, `task ${task} is busy\n`);
  assert.equal(await first.ended, 0, first.output);
  await worker.stop("SIGTERM");
});

test("without a valid token nobody is let onto the bus", async () => {
  const client = start(process.execPath, ["client.js", "1"], { RUNWIRE_DATA_DIR: folder, RUNWIRE_TOKEN: "nobody:x" });
  assert.notEqual(await client.ended, 0);
  assert.match(client.output, /Authorization Violation/i);
});

function startClient(task) {
  return start(process.execPath, ["client.js", String(task)], { RUNWIRE_DATA_DIR: folder });
}

async function startWorker(env = {}) {
  const worker = start(process.execPath, ["worker.js"], { RUNWIRE_DATA_DIR: folder, ...env });
  await worker.says("listening to ");
  return worker;
}

async function createTask(fields) {
  const { status, body } = await call("POST", "/tasks", {
    chain: 1764,
    desc: "Render an invoice",
    target: { action: "request", service: "invoices.render", ...fields },
    trigger: {},
    retry: { attempts: 20, backoff: 0.5 },
  });
  assert.equal(status, 201, JSON.stringify(body));
  return body.id;
}

// Starts a run and does not wait for it.
async function begin(task) {
  const { status, location } = await call("POST", `/tasks/${task}/execute`, undefined, { prefer: "respond-async" });
  assert.equal(status, 202);
  return { location, id: location.split("/").at(-1) };
}

// The run once it has ended.
async function end({ location }) {
  const { body } = await call("GET", location, undefined, { prefer: "wait=30" });
  assert.ok(["DONE", "ERROR"].includes(body.code), JSON.stringify(body));
  return body;
}

async function call(method, path, content, more = {}) {
  const answer = await fetch(new URL(path, api), {
    method,
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json", ...more },
    body: content && JSON.stringify(content),
  });
  return { status: answer.status, location: answer.headers.get("location"), body: await answer.json() };
}

function start(program, args, env) {
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith("RUNWIRE_"));
  const child = spawn(program, args, {
    env: { ...Object.fromEntries(inherited), PYTHONUNBUFFERED: "1", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const process_ = { output: "" };
  const exited = once(child, "exit");
  const waiting = new Set();
  const look = () => waiting.forEach((check) => check());
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (data) => {
      process_.output += data;
      look();
    });
  }
  child.on("exit", look);
  process_.says = (text) =>
    new Promise((resolve, reject) => {
      const check = () => {
        if (process_.output.includes(text)) resolve();
        else if (child.exitCode !== null) reject(new Error(`ended without "${text}": ${process_.output}`));
        else return;
        clearTimeout(timer);
        waiting.delete(check);
      };
      const timer = setTimeout(() => reject(new Error(`never said "${text}": ${process_.output}`)), 30_000);
      waiting.add(check);
      check();
    });
  process_.ended = exited.then(([code]) => code);
  process_.stop = async (signal) => {
    child.kill(signal);
    return (await exited)[0];
  };
  return process_;
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}
