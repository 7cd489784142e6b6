"use strict";

const at = (id) => document.getElementById(id);
const STATUS = { ready: "ready", degraded: "ready, but not with every model", unavailable: "the ranking server does not answer" };
const EXAMPLE = {
  query: "how to mend a bicycle tyre",
  documents: [
    { title: "City by bicycle", summary: "Ten routes for a weekend, with places to rest and to eat." },
    { title: "Tyres and tubes", summary: "Which width fits which rim, and how much air they need." },
    { title: "Mending a puncture", summary: "Take the wheel out, find the hole, roughen it, glue the patch and wait." },
    { title: "The history of the wheel", summary: "From the potter's wheel to the pneumatic tyre." },
    { title: "Bicycle repair at home", summary: "Tools for flat tyres, worn brakes and loose chains." },
  ],
};
let running = null; // the AbortController of the ranking under way

function parse(text) {
  const lines = text.split(/\r?\n/).map((line, index) => [line.trim(), index + 1]).filter(([line]) => line);
  if (!lines[0]?.[0].startsWith("{")) return lines.map(([line]) => line);
  return lines.map(([line, number]) => {
    const fail = (why) => { throw new Error(`Candidates, line ${number}: ${why}`); };
    let item;
    try { item = JSON.parse(line); } catch { fail("is not JSON, though the first one looks like it."); }
    if (item === null || typeof item !== "object") fail("needs an object, in braces.");
    const fields = ["title", "summary", "text"].filter((name) => name in item);
    if (!fields.length) fail("needs a title, a summary or a text.");
    const wrong = fields.find((name) => typeof item[name] !== "string");
    if (wrong) fail(`${wrong} must be a string.`);
    return Object.fromEntries(fields.map((name) => [name, item[name]]));
  });
}

async function rerank(model, query, documents, signal) {
  const headers = { "Content-Type": "application/json" };
  if (at("key").value) headers.Authorization = `Bearer ${at("key").value}`;
  const begun = performance.now();
  let answer;
  try {
    answer = await fetch("v2/rerank", { method: "POST", headers, signal, body: JSON.stringify({ model, query, documents }) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The gateway does not answer. Is it running?");
  }
  const body = await answer.json().catch(() => ({ message: "no JSON" }));
  if (answer.status === 401) { at("key-details").open = true; at("key").focus(); }
  if (!answer.ok) throw new Error(inWords(answer.status, body.message));
  return { model: body.model, results: body.results, ms: performance.now() - begun };
}

function inWords(status, message) {
  const meaning = {
    401: "The gateway asks for an API key", 404: "There is no such model", 413: "That is too much at once",
    422: "The request is at fault", 429: "The gateway is busy, try again", 503: "The ranking server is not there, or busy",
    504: "The ranking server took too long",
  }[status] || `The gateway answered ${status}`;
  return `${meaning}: ${message}`;
}

function moveOf(before, place) {
  const steps = Math.abs(before - place);
  if (!steps) return ["", "same place", "same place"];
  return before > place
    ? ["up", `▲ ${steps}, was ${before + 1}`, `up ${steps}, was ${before + 1}`]
    : ["down", `▼ ${steps}, was ${before + 1}`, `down ${steps}, was ${before + 1}`];
}

function drawItem(result, place, before, given) {
  const item = at("item").content.firstElementChild.cloneNode(true);
  const part = (name) => item.querySelector(`.${name}`);
  const [direction, mark, words] = moveOf(before, place);
  part("place").textContent = place + 1;
  part("mark").textContent = mark;
  part("words").textContent = words;
  if (direction) part("move").classList.add(direction);
  part("score").textContent = result.relevance_score.toFixed(4);
  part("bar").firstElementChild.style.width = `${100 * result.relevance_score}%`;
  part("title").textContent = typeof given === "string" || "text" in given ? "" : given.title ?? "";
  part("text").textContent = typeof given === "string" ? given : given.text ?? given.summary ?? "";
  part("cut").hidden = !result.truncated;
  return item;
}

function drawColumn(ranking, documents, reference) {
  const column = at("column").content.firstElementChild.cloneNode(true);
  const cut = ranking.results.filter((result) => result.truncated).length;
  const before = new Map(reference?.results.map((result, place) => [result.index, place]));
  const facts = [`${ranking.ms.toFixed(0)} ms`, `moves from ${reference ? `${reference.model}'s order` : "the order given"}`];
  if (cut) facts.push(`${cut} too long for the model`);
  column.querySelector("h3").textContent = ranking.model;
  column.querySelector(".facts").textContent = facts.join(" · ");
  column.querySelector("ol").append(...ranking.results.map((result, place) =>
    drawItem(result, place, reference ? before.get(result.index) : result.index, documents[result.index])));
  return column;
}

async function rank() {
  running?.abort();
  const controller = running = new AbortController();
  const done = () => { if (running === controller) { running = null; at("results").removeAttribute("aria-busy"); } };
  at("problem").textContent = "";
  at("results").setAttribute("aria-busy", "true");
  at("summary").textContent = "Ranking…";
  try {
    const query = at("query").value.trim();
    const documents = parse(at("documents").value);
    if (!query) { at("query").focus(); throw new Error("Type a query."); }
    if (!documents.length) { at("documents").focus(); throw new Error("Give at least one candidate."); }
    const models = [at("model").value, at("other").value].filter(Boolean);
    const rankings = await Promise.all(models.map((model) => rerank(model, query, documents, controller.signal)));
    at("columns").className = rankings.length > 1 ? "two" : "";
    at("columns").replaceChildren(...rankings.map((ranking, index) => drawColumn(ranking, documents, index ? rankings[0] : null)));
    at("summary").textContent = summaryOf(rankings, documents.length);
    show();
  } catch (error) {
    if (error.name === "AbortError") return; // a newer one has begun
    at("columns").replaceChildren();
    at("summary").textContent = "";
    at("problem").textContent = error.message;
    show();
  } finally {
    done();
  }
}

function show() { // on a phone it is below the form
  if (at("results").getBoundingClientRect().top > innerHeight * 0.7) at("results").scrollIntoView();
}

function summaryOf(rankings, count) {
  const what = `${count} ${count === 1 ? "document" : "documents"} ranked by ${rankings.map((r) => r.model).join(" and ")}.`;
  if (rankings.length < 2) return what;
  const [first, second] = rankings.map((ranking) => ranking.results.map((result) => result.index));
  const moved = second.filter((index, place) => first[place] !== index).length;
  return `${what} ${moved ? `${moved} have another place with the second.` : "Both have the same order."}`;
}

function count() {
  const lines = at("documents").value.split("\n").filter((line) => line.trim()).length;
  at("count").textContent = lines ? `${lines} so far.` : "";
}

async function setUp() {
  const models = await fetch("v1/models").then((answer) => answer.json()).then((body) => body.models);
  for (const { name } of models) {
    at("model").append(new Option(name, name));
    at("other").append(new Option(name, name));
  }
  const health = await fetch("health").then((answer) => answer.json());
  at("health").dataset.status = health.status;
  at("health").textContent = STATUS[health.status];
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); rank(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); rank(); }
});
at("documents").addEventListener("input", count);
at("open").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", async () => {
  const [file] = at("file").files;
  if (!file) return;
  at("documents").value = await file.text();
  at("file").value = ""; // the same file may be chosen again
  count();
  at("documents").focus();
});
at("example").addEventListener("click", () => {
  at("query").value = EXAMPLE.query;
  at("documents").value = EXAMPLE.documents.map((item) => JSON.stringify(item)).join("\n");
  count();
  rank();
});
setUp().catch(() => { at("problem").textContent = "The gateway does not answer. Is it running?"; });
