// A gRPC server without generated code.  grpc_server.js PORT
"use strict";
const { grpc, service, serverCredentials } = require("./_grpc.js");

function wishOf(call) {
  const number = (name, otherwise) => Number(call.metadata.get(name)[0] ?? otherwise);
  return {
    status: number("zoo-status", 0),
    responses: number("zoo-responses", 1),
    message: Buffer.alloc(number("zoo-bytes", 10), "a"),
    delay: number("zoo-delay-ms", 0),
  };
}

const failure = (wish) => ({ code: wish.status, details: "as asked" });

function answer(wish, callback) {
  const finish = () => (wish.status ? callback(failure(wish)) : callback(null, wish.message));
  return wish.delay ? setTimeout(finish, wish.delay) : finish();
}

function end(wish, call) {
  const finish = () => (wish.status ? call.emit("error", failure(wish)) : call.end());
  return wish.delay ? setTimeout(finish, wish.delay) : finish();
}

const server = new grpc.Server();
server.addService(service, {
  Unary: (call, callback) => answer(wishOf(call), callback),
  Collect: (call, callback) => {
    call.on("data", () => {});
    call.on("end", () => answer(wishOf(call), callback));
  },
  Listen: (call) => {
    const wish = wishOf(call);
    for (let i = 0; i < wish.responses; i++) call.write(wish.message);
    end(wish, call);
  },
  Talk: (call) => {
    const wish = wishOf(call);
    call.on("data", () => call.write(wish.message));
    call.on("end", () => end(wish, call));
  },
});
server.bindAsync(`127.0.0.1:${process.argv[2]}`, serverCredentials(), (error) => {
  if (error) throw error;
});
