// Runs a task over the bus, without HTTP, and tells what becomes of it:
//
//   npm run client -- 90
//
// Ends with 0 when the run is DONE, 1 when it is ERROR, 2 when it was not accepted.

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { jetstream, JetStreamApiError } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const CHAIN = process.env.CHAIN ?? "1764";
const BUSY = 10077; // a run of this task is queued or running (docs/bus.md)

const task = process.argv[2];
const data = process.env.RUNWIRE_DATA_DIR ?? "../../data";
const read = (name) => readFileSync(`${data}/${name}`, "utf8").trim();
const [user, pass] = (process.env.RUNWIRE_TOKEN ?? read("token")).split(":");
const nc = await connect({
  name: "client",
  servers: read("bus.url"),
  user,
  pass,
  inboxPrefix: `_INBOX_${user}`,
});

// First listen, then ask: no event is missed.
const events = nc.subscribe(`tasks.evt.${CHAIN}.${task}.>`);
const run = randomUUID();
process.exitCode = (await accepted()) ? await outcome() : 2;
await nc.close();

// The broker's acknowledgement means that the run is stored and will end. The message id makes a repetition harmless.
async function accepted() {
  try {
    await jetstream(nc).publish(`tasks.cmd.${CHAIN}.${task}.execute`, JSON.stringify({ run, reason: "an example" }), {
      msgID: run,
    });
  } catch (error) {
    const busy = error instanceof JetStreamApiError && error.apiError().err_code === BUSY;
    console.log(busy ? `task ${task} is busy` : `not known to be accepted: ${error.message}`);
    return false;
  }
  console.log(`run ${run} is accepted`);
  return true;
}

// Every event is a CloudEvent, and holds the whole task and its run as they are after it.
async function outcome() {
  for await (const event of events) {
    const now = event.json().run;
    if (now?.id !== run) continue;
    console.log(`${event.headers.get("ce-type")} ${now.code} attempt ${now.attempt}`);
    if (now.finished) {
      console.log(JSON.stringify(now.code === "DONE" ? now.result : now.error));
      return now.code === "DONE" ? 0 : 1;
    }
  }
}
