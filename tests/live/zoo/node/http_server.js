// Node's own http server.  http_server.js PORT
"use strict";
const fs = require("node:fs");
const { ZOO_TLS_CERTIFICATE, ZOO_TLS_KEY } = process.env;
const http = ZOO_TLS_KEY ? require("node:https") : require("node:http");
const options = ZOO_TLS_KEY ? { cert: fs.readFileSync(ZOO_TLS_CERTIFICATE), key: fs.readFileSync(ZOO_TLS_KEY) } : {};

function answer(response, status, body) {
  response.writeHead(status, { "Content-Length": Buffer.byteLength(body) });
  response.end(body);
}

function stream(response) {
  let piece = 0;
  const timer = setInterval(() => {
    response.write(`piece ${piece}\n`);
    if (++piece === 5) {
      clearInterval(timer);
      response.end();
    }
  }, 1);
}

const server = http.createServer(options, (request, response) => {
  const [, page, argument] = request.url.split("/");
  switch (page) {
    case "items":
      return answer(response, 200, JSON.stringify({ item: argument }));
    case "fail":
      return answer(response, 500, "failed\n");
    case "echo": {
      const parts = [];
      request.on("data", (part) => parts.push(part));
      request.on("end", () => answer(response, 200, Buffer.concat(parts)));
      return undefined;
    }
    case "sleep":
      return setTimeout(() => answer(response, 200, "slept\n"), Number(argument));
    case "big":
      return answer(response, 200, Buffer.alloc(Number(argument), "x"));
    case "stream":
      return stream(response);
    default:
      return answer(response, 404, "no such page\n");
  }
});
server.listen({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: 511 }, () =>
  console.log("listening", server.address().port),
);
