// An Express application.  express_server.js PORT
"use strict";
const express = require("express");

const app = express();
app.get("/items/:item", (request, response) => response.json({ item: request.params.item }));
app.get("/fail/:id", (request, response) => response.status(500).send("failed\n"));
app.post("/echo/:id", express.raw({ type: () => true, limit: "64mb" }), (request, response) =>
  response.type("bin").send(Buffer.isBuffer(request.body) ? request.body : Buffer.alloc(0)),
);
app.get("/sleep/:ms/:id", (request, response) => setTimeout(() => response.send("slept\n"), Number(request.params.ms)));
app.get("/big/:size/:id", (request, response) => response.type("bin").send(Buffer.alloc(Number(request.params.size), "x")));
app.get("/stream/:id", async (request, response) => {
  for (let piece = 0; piece < 5; piece++) {
    response.write(`piece ${piece}\n`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  response.end();
});
const server = app.listen(Number(process.argv[2]), "127.0.0.1", 511, () => console.log("listening", server.address().port));
