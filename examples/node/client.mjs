// A client made from the .proto files at run time: no generated code, no Python.
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const PROTO_ROOT = new URL("../../proto", import.meta.url).pathname;
const options = { longs: Number, enums: String, defaults: true, oneofs: true };
const files = ["catalog", "records"].map((name) => `chroma_router/v1/${name}.proto`);
const definitions = loader.loadSync(files, { ...options, includeDirs: [PROTO_ROOT] });
const api = grpc.loadPackageDefinition(definitions).chroma_router.v1;
const details = loader.loadSync(new URL("error_details.proto", import.meta.url).pathname, options);

const address = process.env.CHROMA_ROUTER_ADDR ?? "127.0.0.1:50051";
const MESSAGES = { "grpc.max_receive_message_length": 64 << 20 }; // pages have up to 8 MiB
const credentials = grpc.credentials.createInsecure();
const catalog = new api.CatalogService(address, credentials, MESSAGES);
const records = new api.RecordService(address, credentials, MESSAGES);

// A unary call as a promise. The deadline travels with it: router and shards stop working at it.
const call = (service, method, request, seconds = 10) =>
  new Promise((resolve, reject) => {
    const deadline = Date.now() + seconds * 1000;
    service[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });

// Why a call failed: the ErrorInfo in the google.rpc.Status that travels with the error.
function reasonOf(error) {
  const [packed] = error.metadata.get("grpc-status-details-bin");
  const any = packed && details["google.rpc.Status"].deserialize(packed).details
    .find((detail) => detail.typeUrl.endsWith("google.rpc.ErrorInfo"));
  return any ? details["google.rpc.ErrorInfo"].deserialize(any.value).reason : "";
}

// An embedding is little-endian float32 without a header.
function embedding(values) {
  const bytes = Buffer.alloc(values.length * 4);
  values.forEach((value, index) => bytes.writeFloatLE(value, index * 4));
  return bytes;
}

const check = (right, what) => { if (!right) throw new Error(`wrong answer: ${what}`); };

await call(catalog, "createCollection", { name: "example_node", getOrCreate: true });
const collection = { name: "example_node" };
const record = (id, year, values, document) =>
  ({ id, document, embedding: embedding(values), metadata: { year: { intValue: year } } });
await call(records, "upsert", { collection, records: [
  record("tide", 2019, [1, 0, 0], "Boats leave the harbour when the tide is high."),
  record("dawn", 2025, [0.9, 0.1, 0], "Fishing boats leave the harbour at dawn."),
  record("bread", 2024, [0, 0, 1], "Rye bread needs a slow oven.") ] });
const query = { collection, embeddings: [embedding([1, 0, 0])], nResults: 1,
  filter: { where: JSON.stringify({ year: { $gte: 2020 } }) },
  include: ["INCLUDE_DOCUMENTS", "INCLUDE_DISTANCES"] };
const [{ hits: [hit] }] = (await call(records, "query", query)).results;
console.log(hit.distance.toFixed(3), hit.record.id, hit.record.document);
check(hit.record.id === "dawn", `expected dawn, got ${hit.record.id}`);
const wrong = { ...query, embeddings: [embedding([1, 0])] };
const error = await call(records, "query", wrong).then(() => check(false, "2 numbers fitted"), (e) => e);
console.log(grpc.status[error.code], reasonOf(error), error.details);
check(reasonOf(error) === "DIMENSION_MISMATCH", `the reason was ${reasonOf(error)}`);
await call(catalog, "deleteCollection", { collection });
