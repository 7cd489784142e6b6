// What the gateway is asked, and its errors in words.

const SILENT = "The gateway does not answer. Is it running?";
const FAR = 40; // beyond this logit a probability is 0 or 1
const MEANING = {
  401: "The gateway asks for an API key", 404: "There is no such model", 413: "That is too much at once",
  422: "The request is at fault", 429: "The gateway is busy, try again",
  503: "The ranking server is not there, or busy", 504: "The ranking server took too long",
};

/** Status and body, which is null if it is no JSON. */
async function ask(path, options) {
  try {
    const answer = await fetch(path, options);
    return { status: answer.status, ok: answer.ok, body: await answer.json().catch(() => null) };
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(SILENT);
  }
}

async function askModels() {
  const { status, body } = await ask("v1/models");
  if (!Array.isArray(body?.models)) throw new Error(`The gateway does not tell its models: it answered ${status}.`);
  return body.models.map(({ name }) => name);
}

/** "ready", "degraded", "unavailable", or "gone" where the gateway does not answer as one. */
async function askHealth() {
  return ask("health").then(({ body }) => body?.status ?? "gone", () => "gone");
}

function logitOf(probability) {
  return Math.max(-FAR, Math.min(FAR, Math.log(probability) - Math.log1p(-probability)));
}

/** A ranking: the best document is the first, each with its index among those that were sent. */
async function askRanking(model, query, documents, key, signal) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const sent = documents.map(({ title, text }) => (title ? { title, summary: text } : text));
  const begun = performance.now();
  const { status, ok, body } = await ask("v2/rerank", {
    method: "POST", headers, signal, body: JSON.stringify({ model: model || undefined, query, documents: sent }),
  });
  if (!ok) {
    const meaning = MEANING[status] ?? `The gateway answered ${status}`;
    throw Object.assign(new Error(`${meaning}: ${body?.message ?? "it gave no reason"}`), { status });
  }
  if (!Array.isArray(body?.results)) throw new Error("The gateway's answer is not a ranking.");
  const ranked = body.results.map(({ index, relevance_score: probability, truncated }) =>
    ({ index, probability, score: logitOf(probability), truncated, ...documents[index] }));
  return { model: body.model, ms: performance.now() - begun, ranked };
}
