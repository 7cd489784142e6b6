// The form, and what happens when.

const START = "Type a query and candidates, then rank them.";
const LOOK_MS = 10_000;
const STATUS = {
  ready: "ready", degraded: "ready, but not with every model", unavailable: "the ranking server does not answer",
  gone: "the gateway does not answer",
};
let running = null; // the AbortController of the ranking under way
let queries = []; // of the file that was opened
let shown = null; // the query and the rankings on the page
let nameless = ""; // why the names of the models are not known

function say(problem, summary = "") {
  at("problem").textContent = problem;
  at("summary").textContent = summary;
}

function show(query, documents, rankings) {
  shown = rankings.length ? { query, rankings } : null;
  const words = wordsOf(query);
  at("columns").className = rankings.length > 1 ? "two" : "";
  const columns = rankings.map((ranking, index) => drawColumn(ranking, index ? rankings[0] : null, words));
  at("columns").replaceChildren(...columns);
  at("share").hidden = !shown;
  told("");
  if (at("results").getBoundingClientRect().top > innerHeight * 0.7) at("results").scrollIntoView(); // on a phone
}

function asked() {
  const [{ documents }] = take(at("documents").value);
  const query = at("query").value.trim();
  if (!query) { at("query").focus(); throw new Error("Type a query."); }
  if (!documents.length) { at("documents").focus(); throw new Error("Give at least one candidate."); }
  return { query, documents };
}

async function rank() {
  running?.abort();
  const controller = running = new AbortController();
  at("results").setAttribute("aria-busy", "true");
  say("", "Ranking…");
  try {
    const { query, documents } = asked();
    const models = [at("model").value, at("other").value].filter((model, index) => model || !index);
    const answers = await Promise.allSettled(models.map((model) =>
      askRanking(model, query, documents, at("key").value, controller.signal)));
    if (controller.signal.aborted) return; // a newer one has begun
    const rankings = answers.flatMap(({ value }) => value ?? []);
    const failed = answers.flatMap(({ reason }, index) => (reason ? [[reason, models[index]]] : []));
    say(problemOf(failed, rankings.length), rankings.length ? summaryOf(rankings, documents.length) : "");
    show(query, documents, rankings);
    if (failed.length) look();
  } catch (error) {
    say(error.message);
    show("", [], []);
  } finally {
    if (running === controller) { running = null; at("results").removeAttribute("aria-busy"); }
  }
}

/** The first failure; with its model where the other one has ranked. */
function problemOf(failed, ranked) {
  if (!failed.length) return "";
  const [[error, model]] = failed;
  if (error.status === 401) { at("key-details").open = true; at("key").focus(); }
  return ranked ? `${model}: ${error.message}` : error.message;
}

/** Read what is in the field; of a file of queries the first one takes its place in the form. */
function take(text) {
  const found = read(text).queries;
  if (found[0].query) {
    queries = found;
    at("queries").replaceChildren(...queries.map(({ query }, index) => new Option(query, index)));
    at("of-file").hidden = queries.length < 2;
    choose(0);
  }
  return found;
}

function choose(index) {
  at("query").value = queries[index].query;
  at("documents").value = written(queries[index].documents);
  count();
}

function count() {
  let words = "";
  try {
    const { form, queries: [{ documents }] } = read(at("documents").value);
    if (documents.length) words = `${documents.length} so far${form ? `, as ${form}` : ""}.`;
  } catch { /* it is said when they are ranked */ }
  at("count").textContent = words;
}

function put(text) {
  at("documents").value = text;
  try { take(text); } catch (error) { say(error.message); }
  count();
}

async function share() {
  const fields = ["query", "documents", "model", "other"];
  const link = await linkOf(Object.fromEntries(fields.map((id) => [id, at(id).value])));
  if (link.length > LONGEST_LINK) return told("That is too much for a link: save it as JSON.");
  history.replaceState(null, "", link);
  copy(location.href, "The address is the link; it is copied.", "The address is the link now.");
}

function told(words) { at("shared").textContent = words; }

function copy(text, done, otherwise) {
  if (!navigator.clipboard) return told(otherwise); // over plain HTTP from another machine there is none
  navigator.clipboard.writeText(text).then(() => told(done), () => told(otherwise));
}

function taken() { return rowsOf(shown.query, shown.rankings); }

async function follow() {
  try {
    const link = await askedBy(location.hash);
    if (!link) return;
    for (const id of ["query", "documents", "model", "other"]) at(id).value = link[id] ?? "";
    if (!at("model").value) at("model").selectedIndex = 0; // it is no longer served
    count();
    await rank();
  } catch (error) {
    say(error.message);
  }
}

async function learnModels() {
  try {
    const names = await askModels();
    at("model").replaceChildren(...names.map((name) => new Option(name)));
    at("other").replaceChildren(new Option("nothing", ""), ...names.map((name) => new Option(name)));
    if (nameless && at("problem").textContent === nameless) say("", START);
    nameless = "";
  } catch (error) {
    nameless = error.message;
    if (!shown && !running) say(nameless);
  }
}

/** Tell how the gateway is, and learn the names of its models if that has not succeeded yet. */
async function look() {
  if (!at("model").options.length) await learnModels();
  const status = await askHealth();
  at("health").dataset.status = status;
  at("health").textContent = STATUS[status] ?? status;
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); rank(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); rank(); }
});
at("documents").addEventListener("input", count);
at("documents").addEventListener("paste", () => setTimeout(() => put(at("documents").value)));
at("queries").addEventListener("change", () => { choose(at("queries").value); rank(); });
at("open").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", async () => {
  const [file] = at("file").files;
  if (!file) return;
  put(await file.text());
  at("file").value = ""; // the same file may be chosen again
  at("documents").focus();
});
at("example").hidden = !at("examples").textContent;
at("example").addEventListener("click", () => { put(at("examples").textContent); rank(); });
at("copy").addEventListener("click", () => copy(linesToCopy(taken()), "Copied.", "It could not be copied: save it."));
at("json").addEventListener("click", () => save("ranking.json", "application/json", JSON.stringify(taken(), null, 1)));
at("csv").addEventListener("click", () => save("ranking.csv", "text/csv", csvOf(taken())));
at("link").addEventListener("click", share);
addEventListener("hashchange", follow);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
setInterval(() => { if (!document.hidden) look(); }, LOOK_MS);
say("", START);
look().then(follow);
