// Node's own http client.
"use strict";
const { http, ca, port, fresh, connections, start } = require("./_plan.js");

// An agent without keep-alive but with a limit would still hand a connection on to a request that waits for one.
const agent = fresh ? false : new http.Agent({ ca, keepAlive: true, maxSockets: connections });

start(
  ({ method, path, bodyBytes, chunked }) =>
    new Promise((resolve, reject) => {
      const headers = method === "POST" && !chunked ? { "Content-Length": bodyBytes } : {};
      const request = http.request({ host: "127.0.0.1", port, method, path, headers, agent, ca }, (response) => {
        let bytes = 0;
        response.on("data", (part) => (bytes += part.length));
        response.on("end", () => resolve({ status: response.statusCode, bytes }));
        response.on("error", reject);
      });
      request.on("error", reject);
      if (method === "POST") {
        const half = Math.floor(bodyBytes / 2);
        request.write(Buffer.alloc(bodyBytes - half, "x"));
        if (half > 0) request.write(Buffer.alloc(half, "x"));
      }
      request.end();
    }),
);
