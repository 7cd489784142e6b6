// What people paste or open: lines of text, JSON, JSON lines, CSV, and files of queries with their documents.

// The client library's names of a document's fields; of several, the first that is not empty is read.
const { summary: TEXTS, doc_id: CLIENT_IDS } = JSON.parse(document.getElementById("names").textContent);
const IDS = [...CLIENT_IDS, "_id"]; // the last is that of BEIR's files
const SEPARATORS = ["\t", ",", ";"];

/** Queries with their documents, and the form in words. A query is "" where there are candidates alone. */
function read(content) {
  const text = content.replace(/^\uFEFF/, "").trim();
  if (/^(\{|\[\s*[{"\]])/.test(text)) {
    const [form, items] = readJson(text);
    return { form, queries: grouped(items) };
  }
  const rows = readTable(text);
  if (rows) return { form: "CSV", queries: grouped(rows) };
  return { form: "", queries: [{ query: "", documents: linesOf(text).map(([line]) => documentOf(line)) }] };
}

function fail(where, why) { throw new Error(`Candidates, ${where}: ${why}`); }

function linesOf(text) {
  return text.split(/\r?\n/).map((line, index) => [line.trim(), index + 1]).filter(([line]) => line);
}

/** Each item with its place. JSON lines are what is not JSON as a whole, and the first line is. */
function readJson(text) {
  try {
    const whole = JSON.parse(text);
    return ["JSON", [whole].flat().map((item, index) => [item, `document ${index + 1}`])];
  } catch (error) {
    const lines = linesOf(text);
    if (!isJson(lines[0][0])) throw new Error(`Candidates: this is not JSON: ${error.message}`);
    const bad = lines.find(([line]) => !isJson(line));
    if (bad) fail(`line ${bad[1]}`, "is not JSON, though the first one looks like it.");
    return ["JSON lines", lines.map(([line, number]) => [JSON.parse(line), `line ${number}`])];
  }
}

function isJson(text) {
  try { JSON.parse(text); return true; } catch { return false; }
}

/** Each row as an object with its place; null if the first line is no header. */
function readTable(text) {
  const header = text.slice(0, text.search(/[\r\n]|$/));
  const separator = SEPARATORS.find((each) => header.includes(each)) ?? ",";
  const names = header.split(separator).map((name) => name.trim().replace(/^"(.*)"$/, "$1").toLowerCase());
  const hasText = ["title", ...TEXTS].some((name) => names.includes(name));
  const isHeader = hasText && names.every((name) => /^\w[\w -]*$/.test(name));
  if (!isHeader || header === text) return null;
  return cellsOf(text, separator).flatMap((cells, index) => {
    if (!index || cells.join("") === "") return [];
    const where = `row ${index + 1}`;
    if (cells.length !== names.length) fail(where, `has ${cells.length} cells, and the header ${names.length}.`);
    return [[Object.fromEntries(names.map((name, column) => [name, cells[column]])), where]];
  });
}

function cellsOf(text, separator) {
  const cell = new RegExp(`(?:"([^"]*(?:""[^"]*)*)"|([^${separator}\\r\\n]*))(${separator}|\\r\\n|\\n|\\r|$)`, "y");
  const rows = [[]];
  while (cell.lastIndex < text.length) {
    const [, quoted, plain, end] = cell.exec(text);
    const unclosed = plain?.startsWith('"') && separator !== "\t";
    if (unclosed) fail(`row ${rows.length}`, "has a quotation mark that is not closed.");
    rows.at(-1).push(quoted?.replaceAll('""', '"') ?? plain);
    if (end === separator && cell.lastIndex === text.length) rows.at(-1).push("");
    if (end && end !== separator) rows.push([]);
  }
  return rows;
}

/** Items that have documents, items that name their query, or documents alone. */
function grouped(items) {
  const [first] = items[0] ?? [];
  if (Array.isArray(first?.documents)) return items.map(([item, where]) => queryOf(item, where));
  if (typeof first?.query !== "string") return [{ query: "", documents: items.map((one) => documentOf(...one)) }];
  const queries = Map.groupBy(items, ([item]) => item?.query);
  return [...queries].map(([query, of]) => queryOf({ query, documents: of.map(([item]) => item) }, of[0][1]));
}

function queryOf(item, where) {
  if (typeof item?.query !== "string") fail(where, "needs a query, which is a string.");
  if (!Array.isArray(item.documents)) fail(where, "needs a list of documents, as the first one has.");
  const documents = item.documents.map((one, index) => documentOf(one, `${where}, document ${index + 1}`));
  return { query: item.query, documents };
}

/** A document as { id, label, title, text }; its label is null where nobody judged it. */
function documentOf(item, where) {
  if (typeof item === "string") return { id: "", label: null, title: "", text: item };
  if (item === null || typeof item !== "object" || Array.isArray(item)) fail(where, "needs an object or a string.");
  const named = (names) => names.find((name) => (item[name] ?? "") !== "") ?? names.find((name) => name in item);
  const text = named(TEXTS);
  if (!text && !("title" in item)) fail(where, "needs a title, a summary or a text.");
  const wrong = ["title", text].find((name) => typeof (item[name] ?? "") !== "string");
  if (wrong) fail(where, `${wrong} must be a string.`);
  const label = (item.label ?? "") === "" ? null : Number(item.label);
  if (Number.isNaN(label)) fail(where, "label must be a number.");
  return { id: String(item[named(IDS)] ?? ""), label, title: item.title ?? "", text: item[text] ?? "" };
}

/** The documents of a query as JSON lines, for the field. */
function written(documents) {
  return documents.map(({ id, label, title, text }) => JSON.stringify({
    ...(id && { doc_id: id }), ...(title && { title }), summary: text, ...(label !== null && { label }),
  })).join("\n");
}
