// The rankings on the page.

const at = (id) => document.getElementById(id);
const CUTOFF = 10; // of nDCG
const UNSPACED = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}]/u;

/** A copy of a template, and what finds a part of it by its class. */
function made(template) {
  const element = at(template).content.firstElementChild.cloneNode(true);
  return [element, (name) => element.querySelector(`.${name}`)];
}

/** Matches the words of the query; null if it has none. Scripts without spaces have words by the browser's rules. */
function wordsOf(query) {
  const words = [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(query)]
    .filter(({ isWordLike }) => isWordLike).map(({ segment }) => segment);
  const pattern = (word) => {
    const literal = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return !UNSPACED.test(word) ? `(?<![\\p{L}\\p{N}])${literal}(?![\\p{L}\\p{N}])` : literal;
  };
  return words.length ? new RegExp(`(${words.map(pattern).join("|")})`, "giu") : null;
}

function fill(element, text, words) {
  const parts = words ? text.split(words) : [text]; // those between are the words
  element.replaceChildren(...parts.map((part, index) => {
    if (index % 2 === 0) return part;
    const mark = document.createElement("mark");
    mark.textContent = part;
    return mark;
  }));
}

function moveOf(before, place) {
  const steps = Math.abs(before - place);
  if (!steps) return ["", "same place", "same place"];
  return before > place
    ? ["up", `▲ ${steps}, was ${before + 1}`, `up ${steps}, was ${before + 1}`]
    : ["down", `▼ ${steps}, was ${before + 1}`, `down ${steps}, was ${before + 1}`];
}

function decimals(number, digits) { return number.toFixed(digits).replace("-", "−"); }

function drawItem(result, place, before, width, words) {
  const [item, part] = made("item");
  const [direction, mark, spoken] = moveOf(before, place);
  part("place").textContent = place + 1;
  part("mark").textContent = mark;
  part("words").textContent = spoken;
  if (direction) part("move").classList.add(direction);
  part("id").textContent = result.id;
  part("label").textContent = result.label === null ? "" : `label ${result.label}`;
  part("logit").textContent = decimals(result.score, 2);
  part("score").textContent = decimals(result.probability, 4);
  part("bar").firstElementChild.style.width = `${100 * width}%`;
  fill(part("title"), result.title, words);
  fill(part("text"), result.text, words);
  part("cut").hidden = !result.truncated;
  const details = item.firstElementChild;
  details.addEventListener("toggle", () => open(details, part, result, words));
  return item;
}

/** The whole text and all figures, written when they are asked for first. */
function open(details, part, result, words) {
  if (!details.open || part("full").hasChildNodes()) return;
  fill(part("full"), result.text, words);
  const figures = {
    id: result.id, label: result.label ?? "", logit: decimals(result.score, 6),
    probability: result.probability.toPrecision(6), "place given": result.index + 1,
  };
  part("figures").append(...Object.entries(figures).filter(([, value]) => value !== "").map(([name, value]) => {
    const [pair, term, definition] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
    [term.textContent, definition.textContent] = [name, value];
    pair.append(term, definition);
    return pair;
  }));
}

/** Each document's share of the list's range of logits; those of equal logits are full. */
function widthsOf(ranked) {
  const [highest, lowest] = [ranked[0].score, ranked.at(-1).score];
  return ranked.map(({ score }) => (highest > lowest ? 0.02 + 0.98 * (score - lowest) / (highest - lowest) : 1));
}

/** As trec_eval has it: the gain is the label, below 0 it is 0. Null without a label above 0. */
function ndcgOf(ranked) {
  const gains = ranked.map(({ label }) => Math.max(0, label ?? 0));
  const dcg = (list) => list.slice(0, CUTOFF).reduce((sum, gain, place) => sum + gain / Math.log2(place + 2), 0);
  const ideal = dcg(gains.toSorted((a, b) => b - a));
  return ideal ? dcg(gains) / ideal : null;
}

function drawColumn({ model, ms, ranked }, reference, words) {
  const [column, part] = made("column");
  const before = new Map(reference?.ranked.map(({ index }, place) => [index, place]));
  const cut = ranked.filter(({ truncated }) => truncated).length;
  const ndcg = ndcgOf(ranked), widths = widthsOf(ranked);
  column.querySelector("h3").textContent = model;
  part("facts").textContent = [
    ndcg === null ? "" : `nDCG@${CUTOFF} ${ndcg.toFixed(3)}`, `${ms.toFixed(0)} ms`,
    `moves from ${reference ? `${reference.model}'s order` : "the order given"}`,
    cut ? `${cut} too long for the model` : "",
  ].filter(Boolean).join(" · ");
  column.querySelector("ol").append(...ranked.map((result, place) =>
    drawItem(result, place, reference ? before.get(result.index) : result.index, widths[place], words)));
  return column;
}

function summaryOf(rankings, count) {
  const names = rankings.map(({ model }) => model).join(" and ");
  const what = `${count} ${count === 1 ? "document" : "documents"} ranked by ${names}.`;
  if (rankings.length < 2) return what;
  const [first, second] = rankings.map(({ ranked }) => ranked.map(({ index }) => index));
  const moved = second.filter((index, place) => first[place] !== index).length;
  return `${what} ${moved ? `${moved} have another place with the second.` : "Both have the same order."}`;
}
