// A gRPC client.  grpc_client.js PORT PLAN CONCURRENCY
"use strict";
const fs = require("node:fs");
const { grpc, service, nowhere, clientCredentials } = require("./_grpc.js");

const [, , port, planned, concurrency] = process.argv;
const NAMES = [
  "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
  "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
  "DATA_LOSS", "UNAUTHENTICATED",
];
const plan = fs.readFileSync(planned, "utf8").trim().split("\n").map((line) => line.split(" "));
const client = new grpc.Client(`127.0.0.1:${port}`, clientCredentials());
const lines = [];

function carryOut([n, kind, traceparent, status, requests, responses, bytes, delay, deadline, cancel]) {
  const metadata = new grpc.Metadata();
  const said = { traceparent, "zoo-status": status, "zoo-responses": responses, "zoo-bytes": bytes, "zoo-delay-ms": delay };
  for (const [name, value] of Object.entries(said)) metadata.set(name, value);
  const options = Number(deadline) ? { deadline: Date.now() + Number(deadline) } : {};
  const message = Buffer.alloc(Number(bytes), "q");
  return new Promise((resolve) => {
    const start = process.hrtime.bigint();
    let came = 0;
    const done = (code) => {
      lines.push(
        `{"n":${n},"status":"${NAMES[code]}","start_ns":${start},"end_ns":${process.hrtime.bigint()},"responses":${came}}`,
      );
      resolve();
    };
    const { path, requestSerialize, responseDeserialize } = service[kind] ?? nowhere;
    const callback = (error) => {
      came = error ? 0 : 1;
      done(error ? error.code : 0);
    };
    let call;
    const send = () => {
      for (let i = 0; i < Number(requests); i++) call.write(message);
      call.end();
    };
    if (kind === "Collect") {
      call = client.makeClientStreamRequest(path, requestSerialize, responseDeserialize, metadata, options, callback);
      send();
    } else if (kind === "Listen" || kind === "Talk") {
      call =
        kind === "Talk"
          ? client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize, metadata, options)
          : client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, message, metadata, options);
      call.on("data", () => came++);
      call.on("error", () => {});
      call.on("status", ({ code }) => done(code));
      if (kind === "Talk") send();
    } else {
      call = client.makeUnaryRequest(path, requestSerialize, responseDeserialize, message, metadata, options, callback);
    }
    if (Number(cancel)) setTimeout(() => call.cancel(), Number(cancel));
  });
}

async function work(first) {
  for (let i = first; i < plan.length; i += Number(concurrency)) await carryOut(plan[i]);
}

console.log("ready");
process.stdin.once("data", async () => {
  await Promise.all(Array.from({ length: Number(concurrency) }, (_, i) => work(i)));
  client.close();
  console.log(lines.join("\n"));
  process.stdin.destroy();
});
