// Mathematics where it comes into sight, and the keys. The page is whole without either.
// What a model wrote only ever becomes text nodes, and the nodes that KaTeX builds of a formula.
"use strict";

// --- mathematics ---------------------------------------------------------------------------------

// No links, no HTML, no macro that runs for ever, no rule across the screen; an error leaves the text as it is.
const OPTIONS = { throwOnError: true, trust: false, strict: "ignore", maxExpand: 300, maxSize: 20 };
const MOST_CHARS = 2000; // of one formula
const MOST_MS = 250; // for one text; what is left of it stays as it was written
const CLOSERS = { "$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]" };

// The formula that begins at `at`: `body`, where it ends, whether it stands alone; null if none does.
function formulaAt(text, at) {
  if (text.startsWith("\\boxed{", at)) {
    const end = closingBrace(text, at + 6);
    return end && { body: text.slice(at, end), end, alone: false };
  }
  const open = ["$$", "\\(", "\\[", "$"].find((sign) => text.startsWith(sign, at));
  if (!open) return null;
  const from = at + open.length;
  const window_ = text.slice(from, from + MOST_CHARS);
  const length = closedAt(window_, CLOSERS[open]);
  if (length < 1) return null;
  const body = window_.slice(0, length);
  const end = from + length + CLOSERS[open].length;
  // A dollar may be a dollar: "$5 and $6".
  if (open === "$" && (/^\s|\s$/.test(body) || /\d/.test(text[end] ?? ""))) return null;
  return /\n\s*\n/.test(body) ? null : { body, end, alone: open === "$$" || open === "\\[" };
}

function closedAt(text, closer) {
  for (let at = 0; at < text.length; at++) {
    if (text.startsWith(closer, at)) return at;
    if (text[at] === "\\") at++;
  }
  return -1;
}

function closingBrace(text, open) {
  let depth = 0;
  for (let at = open; at < Math.min(text.length, open + MOST_CHARS); at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === "{") depth++;
    else if (text[at] === "}" && --depth === 0) return at + 1;
  }
  return null;
}

function rendered(body, alone) {
  const node = document.createElement("span");
  try {
    katex.render(body, node, { ...OPTIONS, displayMode: alone });
    return node;
  } catch {
    return null; // a formula in KaTeX's eyes only
  }
}

// Where the extracted answer lies in an element's text.
function markedRange(element) {
  const mark = element.querySelector("mark");
  if (!mark) return [-1, -1];
  const before = document.createRange();
  before.setStart(element, 0);
  before.setEndBefore(mark);
  const from = before.toString().length;
  return [from, from + mark.textContent.length];
}

function inMark(node) {
  const mark = document.createElement("mark");
  mark.append(node);
  return mark;
}

// Nodes of `text[from, to)`, the part inside the marked range in a <mark>.
function plain(text, from, to, [start, end]) {
  const cuts = [from, Math.min(Math.max(start, from), to), Math.max(Math.min(end, to), from), to];
  return [0, 1, 2]
    .map((part) => [text.slice(cuts[part], cuts[part + 1]), part])
    .filter(([piece]) => piece)
    .map(([piece, part]) => (part === 1 ? inMark(piece) : piece));
}

// The nodes of a text with its formulas rendered; null where it has none.
function withFormulas(text, range) {
  const nodes = [];
  const until = performance.now() + MOST_MS;
  let done = 0;
  for (let at = 0; at < text.length && performance.now() < until; at++) {
    if (text[at] !== "$" && text[at] !== "\\") continue;
    const found = formulaAt(text, at);
    const node = found && rendered(found.body, found.alone);
    if (node) {
      // What stands alone needs no line break of the text around it.
      const skipped = (place) => (found.alone && text[place] === "\n" ? 1 : 0);
      nodes.push(...plain(text, done, Math.max(done, at - skipped(at - 1)), range));
      nodes.push(range[0] < found.end && range[1] > at ? inMark(node) : node);
      done = found.end + skipped(found.end);
      at = found.end - 1;
    } else if (text[at] === "\\" && !found) {
      at++; // an escaped sign opens nothing
    }
  }
  return done ? [...nodes, ...plain(text, done, text.length, range)] : null;
}

const shown = new Map(); // element -> [nodes as written, nodes with formulas]
let asWritten = false;

function typeset(element) {
  const text = element.textContent;
  let nodes = null;
  if (element.classList.contains("tex")) nodes = withFormulas(text, markedRange(element));
  else if (text.length <= MOST_CHARS && /[\\^_]/.test(text)) {
    const node = rendered(text.replace(/^\$+|\$+$/g, ""), false);
    nodes = node && [node];
  }
  if (!nodes) return;
  shown.set(element, [[...element.childNodes], nodes]);
  if (!asWritten) element.replaceChildren(...nodes);
}

function toggleMathematics() {
  asWritten = !asWritten;
  for (const [element, [written, nodes]] of shown) element.replaceChildren(...(asWritten ? written : nodes));
}

if (typeof katex !== "undefined") {
  // What is folded or far below is not worked on before somebody looks at it.
  const sight = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        sight.unobserve(target);
        typeset(target);
      }
    },
    { rootMargin: "300px" },
  );
  document.querySelectorAll(".tex, .answer").forEach((element) => sight.observe(element));
}

// --- keys ----------------------------------------------------------------------------------------

const items = [...document.querySelectorAll("[data-item]")];

function step(by) {
  const here = items.findIndex((item) => item.contains(document.activeElement));
  const item = items[here < 0 ? (by > 0 ? 0 : items.length - 1) : here + by];
  if (!item) return;
  (item.hasAttribute("tabindex") ? item : item.querySelector("a")).focus({ preventScroll: true });
  item.scrollIntoView({ block: item.offsetHeight > innerHeight ? "start" : "nearest" });
}

function follow(relation, last) {
  const links = document.querySelectorAll(`a[rel=${relation}]`);
  links[last ? links.length - 1 : 0]?.click();
}

function fold(folds) {
  const open = folds.some((one) => !one.open);
  for (const one of folds) one.open = open;
}

const reasoning = (within) => [...within.querySelectorAll("details.reasoning")];
const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  n: () => follow("next", false),
  p: () => follow("prev", false),
  N: () => follow("next", true),
  P: () => follow("prev", true),
  u: () => follow("up", false),
  o: () => fold(reasoning(document.activeElement.closest("[data-item]") ?? items[0] ?? document.body)),
  O: () => fold(reasoning(document)),
  m: toggleMathematics,
  "/": () => document.querySelector("input[type=search]")?.focus(),
  "?": () => fold([document.querySelector("details.keys")]),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input, select, textarea");
  if (typing && event.key === "Escape") typing.blur();
  if (typing || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});
