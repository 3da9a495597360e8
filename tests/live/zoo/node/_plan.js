// What the Node clients share: arguments, the plan, the start signal and the truth they print.
"use strict";
const fs = require("node:fs");

const [, , port, planFile, mode, connections] = process.argv;
const plan = fs
  .readFileSync(planFile, "utf8")
  .trimEnd()
  .split("\n")
  .map((line) => {
    const [n, method, path, bodyBytes, chunked] = line.split("\t");
    return { n: Number(n), method, path, bodyBytes: Number(bodyBytes), chunked: chunked === "1" };
  });

async function run(exchange) {
  const truth = [];
  const work = async (first) => {
    for (let at = first; at < plan.length; at += Number(connections)) {
      const { n, method, path } = plan[at];
      const start = process.hrtime.bigint(); // CLOCK_MONOTONIC
      let result;
      try {
        result = await exchange(plan[at]);
      } catch (error) {
        result = { status: 0, bytes: 0, error: String(error.cause ?? error) };
      }
      const end = process.hrtime.bigint();
      truth.push(
        `{"n":${n},"method":"${method}","path":"${path}","status":${result.status},"start_ns":${start},` +
          `"end_ns":${end},"bytes":${result.bytes},"error":${JSON.stringify(result.error ?? "")}}`,
      );
    }
  };
  await Promise.all(Array.from({ length: Number(connections) }, (_, first) => work(first)));
  process.stdout.write(truth.join("\n") + "\n", () => process.exit(0));
}

function start(exchange) {
  console.log("ready");
  process.stdin.once("data", () => run(exchange));
}

const ca = process.env.ZOO_TLS_CA && fs.readFileSync(process.env.ZOO_TLS_CA);
const http = ca ? require("node:https") : require("node:http");
const base = `${ca ? "https" : "http"}://127.0.0.1:${port}`;

module.exports = { ca, http, base, port: Number(port), fresh: mode === "fresh", connections: Number(connections), start };
