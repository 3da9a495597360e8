// Node's own HTTP/2 client: all requests over one connection.  http2_client.js PORT PLAN keepalive STREAMS
"use strict";
const http2 = require("node:http2");
const { ca, base, start } = require("./_plan.js");

let session;
start(({ method, path, bodyBytes }) => {
  session ??= http2.connect(base, { ca });
  return new Promise((resolve, reject) => {
    const stream = session.request({ ":method": method, ":path": path });
    let status = 0;
    let bytes = 0;
    stream.on("response", (headers) => (status = headers[":status"]));
    stream.on("data", (part) => (bytes += part.length));
    stream.on("end", () => resolve({ status, bytes }));
    stream.on("error", reject);
    stream.end(method === "POST" ? Buffer.alloc(bodyBytes, "x") : undefined);
  });
});
