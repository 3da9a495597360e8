// Node's own HTTP/2 server.  http2_server.js PORT
"use strict";
const fs = require("node:fs");
const http2 = require("node:http2");
const { ZOO_TLS_CERTIFICATE, ZOO_TLS_KEY, ZOO_HEADER_TABLE } = process.env;
const { NGHTTP2_INTERNAL_ERROR, NGHTTP2_REFUSED_STREAM } = http2.constants;

const settings = { maxConcurrentStreams: 200, ...(ZOO_HEADER_TABLE ? { headerTableSize: Number(ZOO_HEADER_TABLE) } : {}) };
const options = { settings, maxSendHeaderBlockLength: 1 << 20, maxHeaderListPairs: 1000 };
const server = ZOO_TLS_KEY
  ? http2.createSecureServer({
      ...options,
      cert: fs.readFileSync(ZOO_TLS_CERTIFICATE),
      key: fs.readFileSync(ZOO_TLS_KEY),
    })
  : http2.createServer(options);

function answer(stream, status, body, headers = {}) {
  if (stream.destroyed) return;
  stream.respond({ ":status": status, "content-length": Buffer.byteLength(body), ...headers });
  stream.end(body);
}

function pieces(stream) {
  let piece = 0;
  stream.respond({ ":status": 200 });
  const timer = setInterval(() => {
    if (stream.destroyed) return clearInterval(timer);
    stream.write(`piece ${piece}\n`);
    if (++piece === 5) {
      clearInterval(timer);
      stream.end();
    }
  }, 1);
}

server.on("stream", (stream, headers) => {
  const [, page, argument] = headers[":path"].split("?")[0].split("/");
  stream.on("error", () => {});
  switch (page) {
    case "items":
      return answer(stream, 200, JSON.stringify({ item: argument }));
    case "fail":
      return answer(stream, 500, "failed\n");
    case "echo": {
      const parts = [];
      stream.on("data", (part) => parts.push(part));
      stream.on("end", () => answer(stream, 200, Buffer.concat(parts)));
      return undefined;
    }
    case "sleep":
      return setTimeout(() => answer(stream, 200, "slept\n"), Number(argument));
    case "big":
      return answer(stream, 200, Buffer.alloc(Number(argument), "x"));
    case "stream":
      return pieces(stream);
    case "header": // a header block of so many bytes, which no frame holds
      return answer(stream, 200, "much was said\n", { "x-much": "y".repeat(Number(argument)) });
    case "refused":
      return stream.close(NGHTTP2_REFUSED_STREAM);
    case "broken":
      stream.respond({ ":status": 200 });
      stream.write("begun");
      return setTimeout(() => stream.close(NGHTTP2_INTERNAL_ERROR), 5);
    default:
      return answer(stream, 404, "no such page\n");
  }
});
server.listen({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: 511 }, () =>
  console.log("listening", server.address().port),
);
