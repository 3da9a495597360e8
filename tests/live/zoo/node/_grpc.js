// What the gRPC programs in Node share.
"use strict";
const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");

const raw = { requestSerialize: (b) => b, requestDeserialize: (b) => b, responseSerialize: (b) => b, responseDeserialize: (b) => b };
const kind = (name, requestStream, responseStream) => ({ path: `/zoo.Zoo/${name}`, requestStream, responseStream, ...raw });

exports.grpc = grpc;
exports.service = {
  Unary: kind("Unary", false, false),
  Collect: kind("Collect", true, false),
  Listen: kind("Listen", false, true),
  Talk: kind("Talk", true, true),
};
exports.nowhere = kind("Nowhere", false, false);
exports.serverCredentials = () => {
  const { ZOO_TLS_CERTIFICATE: certificate, ZOO_TLS_KEY: key } = process.env;
  if (!certificate) return grpc.ServerCredentials.createInsecure();
  return grpc.ServerCredentials.createSsl(null, [{ cert_chain: fs.readFileSync(certificate), private_key: fs.readFileSync(key) }]);
};
exports.clientCredentials = () => {
  const { ZOO_TLS_CA: ca } = process.env;
  return ca ? grpc.credentials.createSsl(fs.readFileSync(ca)) : grpc.credentials.createInsecure();
};
