// Rankings to take away: files, the clipboard, and a link that holds what was asked.

const LINK = "#ask=";
const LONGEST_LINK = 30_000; // characters; mail and chat programs cut longer ones
const FORMULA = /^[=+\-@\t\r]/; // a spreadsheet would run a text that begins like this

function rowsOf(query, rankings) {
  return rankings.flatMap(({ model, ranked }) => ranked.map((one, place) => ({
    query, model, rank: place + 1, doc_id: one.id, score: one.score, probability: one.probability,
    label: one.label, truncated: one.truncated, title: one.title, summary: one.text,
  })));
}

function csvOf(rows) {
  const cell = (value) => {
    const text = String(value ?? "");
    const safe = typeof value === "string" && FORMULA.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [Object.keys(rows[0]), ...rows.map(Object.values)].map((cells) => `${cells.map(cell).join(",")}\r\n`).join("");
}

function linesToCopy(rows) {
  return rows.map(({ model, rank, score, doc_id: id, title, summary }) =>
    [model, rank, score.toFixed(4), id, title || summary].join("\t")).join("\n");
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href));
}

/** The fragment of a link, which browsers send to no server. */
async function linkOf(asked) {
  const packed = new Blob([JSON.stringify(asked)]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(packed).arrayBuffer());
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return LINK + text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** What the link asks; null if it asks nothing. */
async function askedBy(fragment) {
  if (!fragment.startsWith(LINK)) return null;
  try {
    const text = atob(fragment.slice(LINK.length).replaceAll("-", "+").replaceAll("_", "/"));
    const packed = new Blob([Uint8Array.from(text, (letter) => letter.charCodeAt(0))]);
    const asked = await new Response(packed.stream().pipeThrough(new DecompressionStream("deflate-raw"))).json();
    if (["query", "documents"].every((name) => typeof asked[name] === "string")) return asked;
  } catch { /* cut, or not a link of this page */ }
  throw new Error("This link is not whole.");
}
