// Reads an AsyncAPI document from stdin, and ends with 1 when the specification's own parser complains about it.
import { Parser } from "@asyncapi/parser";
import { readFileSync } from "node:fs";

const { document, diagnostics } = await new Parser().parse(readFileSync(0, "utf8"));
const ERROR = 0, WARNING = 1;
const complaints = diagnostics.filter(({ severity }) => severity === ERROR || severity === WARNING);
for (const { code, path, message } of complaints) console.error(`${code} ${path.join(".")}: ${message}`);
if (!document || complaints.length > 0) process.exit(1);
console.log(`valid: AsyncAPI ${document.version()}, ${document.operations().length} operations, ${document.messages().length} messages`);
