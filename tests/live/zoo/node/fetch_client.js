// Node's fetch (undici).
"use strict";
const { base, fresh, start } = require("./_plan.js");

function body(bodyBytes, chunked) {
  const whole = Buffer.alloc(bodyBytes, "x");
  if (!chunked) return whole;
  return new ReadableStream({
    start(controller) {
      controller.enqueue(whole.subarray(0, bodyBytes >> 1));
      controller.enqueue(whole.subarray(bodyBytes >> 1));
      controller.close();
    },
  });
}

start(async ({ method, path, bodyBytes, chunked }) => {
  const options = { method, headers: fresh ? { connection: "close" } : {} };
  if (method === "POST") Object.assign(options, { body: body(bodyBytes, chunked), duplex: "half" });
  const response = await fetch(`${base}${path}`, options);
  return { status: response.status, bytes: (await response.arrayBuffer()).byteLength };
});
