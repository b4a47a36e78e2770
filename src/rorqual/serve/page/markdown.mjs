// Turn Markdown with formulas into DOM nodes. Markup in the text stays text, and the result is sanitised.

import { Marked } from "./vendor/marked/marked.min.mjs";
import { extract, pieces } from "./formulas.mjs";

const { DOMPurify, katex } = globalThis;
const escaped = (text) => text.replace(/[&<>"]/g, (one) => `&#${one.charCodeAt(0)};`);
const marked = new Marked({
  breaks: true,
  renderer: {
    html: ({ text }) => escaped(text),
    // A picture would reveal the conversation to the host of the picture, so the page shows its address as a link.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
  },
});
const CLEAN = { RETURN_DOM_FRAGMENT: true, FORBID_TAGS: ["img", "style", "form", "svg", "math", "audio", "video"], FORBID_ATTR: ["style", "id", "name"] };
const KATEX = { throwOnError: false, strict: "ignore", trust: false, maxSize: 50, maxExpand: 500 };

// Replace the content of `element` by the rendered text.
export function render(element, source) {
  const { text, formulas } = extract(source);
  const fragment = DOMPurify.sanitize(marked.parse(text), CLEAN);
  for (const link of fragment.querySelectorAll("a")) {
    Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
    if (!link.textContent.trim()) link.textContent = link.href; // a screen reader must have something to say
  }
  for (const box of fragment.querySelectorAll("input")) box.ariaLabel = box.checked ? "Done" : "To do";
  drawFormulas(fragment, formulas);
  for (const code of fragment.querySelectorAll("pre")) code.append(copyButton(() => code.querySelector("code").textContent, "Copy code"));
  element.replaceChildren(fragment);
}

function drawFormulas(fragment, formulas) {
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) if (walker.currentNode.data.includes("\ue000")) texts.push(walker.currentNode);
  for (const node of texts) {
    const inCode = node.parentElement?.closest("code");
    node.replaceWith(...pieces(node.data).map((piece) => {
      if (typeof piece === "string" || !formulas[piece]) return String(piece);
      if (inCode) return formulas[piece].source;
      const span = document.createElement("span");
      katex.render(formulas[piece].tex, span, { ...KATEX, displayMode: formulas[piece].display });
      return span;
    }));
  }
}

// Return a button that copies the text that `text` returns.
export function copyButton(text, label) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", className: "copy", textContent: "Copy", ariaLabel: label });
  button.addEventListener("click", async () => {
    await copy(text());
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // plain HTTP from another machine has no clipboard API
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
