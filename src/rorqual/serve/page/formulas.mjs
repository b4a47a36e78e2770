// Find the formulas of a text. Prices such as "$5 and $6" are no formulas. Code contains no formulas.

const INSIDE = String.raw`(?:[^$\\\n]|\\[\s\S]|\n(?![ \t]*\n))`; // one character of a formula, which has no empty line
const BRACKETED = String.raw`(?:[^\\\n]|\\(?![()[\]])|\n(?![ \t]*\n))+`;
// Code, formulas and escaped characters. As in pandoc, an inline formula has no space after the opening dollar sign or before
// the closing dollar sign, and no digit follows the closing dollar sign.
const PARTS = new RegExp(
  [
    String.raw`(?<fence>^[ \t>]*(?<mark>${"`"}{3,}|~{3,})[^\n]*$[\s\S]*?(?:^[ \t>]*\k<mark>[${"`"}~]*[ \t]*$|(?![\s\S])))`,
    "(?<!`)(?<ticks>`{1,8})(?!`)[\\s\\S]+?(?<!`)\\k<ticks>(?!`)",
    String.raw`\\\[(?<square>${BRACKETED})\\\]`,
    String.raw`\\\((?<round>${BRACKETED})\\\)`,
    String.raw`(?<!\$)\$\$(?!\$)(?<display>${INSIDE}+)(?<!\$)\$\$(?!\$)`,
    String.raw`(?<![A-Za-z0-9_$])\$(?![\s$])(?<inline>${INSIDE}*[^\s$\\])\$(?![\d$])`,
    String.raw`\\[^\n]`,
  ].join("|"),
  "gm",
);
const COMMANDS = /\\[A-Za-z]+(?:\{[^{}]*\})?/g;
// A word, or a letter that is neither Latin nor Greek. Both occur in sentences and not in formulas.
const WORDS = /(?<=\s)\p{L}{2,}(?=\s)|(?<![\p{L}\d_])\p{L}{3,}(?![\p{L}\d_])|(?![A-Za-z\u0370-\u03ff])\p{L}/u;

// Text between the dollar signs of two prices or two shell variables is no formula.
function isFormula(inside, after) {
  if (/^\s*[)\],.;:!?]/.test(inside)) return false;
  if (/^\s*\d/.test(inside) && WORDS.test(inside.replace(COMMANDS, ""))) return false;
  return !(/^\p{L}/u.test(after) && /[/\-:,;.(=]$/.test(inside));
}

const OPEN = "\ue000", CLOSE = "\ue001"; // private characters of Unicode, which Markdown leaves alone

// Return the text with a placeholder for each formula, and the list of formulas as {tex, display, source}.
export function extract(text) {
  const formulas = [];
  const replaced = text.replace(/[\ue000\ue001]/g, "").replace(PARTS, (source, ...rest) => {
    const { square, round, display, inline } = rest.at(-1);
    const tex = square ?? round ?? display ?? inline;
    if (tex === undefined) return source;
    const [place, whole] = rest.slice(-3);
    const dollars = display !== undefined || inline !== undefined;
    if (dollars && !isFormula(tex, whole.slice(place + source.length, place + source.length + 2))) return source;
    formulas.push({ tex, display: (square ?? display) !== undefined, source });
    return `${OPEN}${formulas.length - 1}${CLOSE}`;
  });
  return { text: replaced, formulas };
}

// Split a text at its placeholders. Return strings, and the numbers of formulas.
export function pieces(text) {
  return text.split(/\ue000(\d+)\ue001/).map((piece, index) => (index % 2 ? Number(piece) : piece));
}
