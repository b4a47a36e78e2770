"use strict";
const data = JSON.parse(document.getElementById("data").textContent), steps = data.steps;
const WORD = {r: "right", w: "wrong", u: "not graded"}, MARK = {r: "✓", w: "✕", u: "○"};
const V = 0, ADV = 1, TOK = 2, THINK = 3, CUT = 4, REASON = 5, TEXT = 6;
let at = 0, sort = "spread", family = "", open = new Set(), auto = true, playing = 0;

function el(tag, attrs = {}, ...inner) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs)) {
    if (name.startsWith("on")) made[name] = value; else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...inner.filter(x => x !== null));
  return made;
}
function svg(tag, attrs, ...inner) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attrs)) made.setAttribute(name, value);
  made.append(...inner);
  return made;
}
const mean = list => list.length ? list.reduce((a, b) => a + b, 0) / list.length : 0;
const percent = x => (100 * x).toFixed(x === 1 || x === 0 ? 0 : 1) + " %";
const number = x => x === 0 ? "0" : Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 0.01 ? x.toFixed(2) : x.toExponential(1);
const count = x => String(Math.round(x));
const graded = g => g.s.filter(s => s[V] !== "u");
const share = g => mean(graded(g).map(s => +(s[V] === "r")));
const spread = g => { const p = share(g); return p * (1 - p); };
const force = (advantage, top) => Math.round(20 + 75 * Math.min(1, Math.abs(advantage) / top));
function shade(advantage, top) {
  if (!advantage) return "transparent";
  const strength = force(advantage, top);
  return `color-mix(in srgb, var(${advantage > 0 ? "--up" : "--down"}) ${strength}%, transparent)`;
}

const of = name => steps.map(s => name in s.metrics ? s.metrics[name] : null);
const CHARTS = [
  {title: "Right", form: percent, high: 1, lines: [["all", of("reward"), "--up"], ["when thinking", of("right_when_thinking"), "--good"],
    ["at once", of("right_at_once"), "--down"]]},
  {title: "Share that thinks", form: percent, high: 1, lines: [["thinks", of("think_share"), "--up"]]},
  {title: "Length, tokens", form: number, lines: [["reply", of("reply_length"), "--up"], ["thinking", of("think_length"), "--good"]]},
  {title: "Groups with a gradient", form: count, lines: [["both right and wrong",
    steps.map(s => s.groups.filter(g => spread(g) > 0).length), "--up"], ["cut-off answers", of("truncated"), "--down"]]},
  {title: "Entropy, nats per token", form: number, lines: [["entropy", of("entropy"), "--up"]]},
  {title: "Sampler against trainer", form: number, lines: [["mean difference, nats", of("logprob_diff"), "--up"],
    ["maximum", of("logprob_diff_max"), "--down"]]},
  {title: "Router without replay", form: count, lines: [["choices that would differ", of("routing_flips"), "--down"]]},
].map(c => ({...c, lines: c.lines.filter(l => l[1].some(v => v !== null))})).filter(c => c.lines.length);
const silent = c => c.lines.every(l => l[1].every(v => !v));

const W = 300, H = 90, first = steps[0].step, final = steps[steps.length - 1].step;
const x = i => final > first ? (steps[i].step - first) / (final - first) * W : W / 2;
function roundTop(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 2, 2.5, 5, 10].find(m => m * unit >= value * (1 - 1e-9));
}
function chart(c) {
  const values = c.lines.flatMap(l => l[1].filter(v => v !== null));
  const high = c.high ?? (c.form === count ? Math.ceil(roundTop(Math.max(...values))) : roundTop(Math.max(...values)));
  const y = v => H - v / high * H;
  const cursor = svg("line", {y1: 0, y2: H, stroke: "var(--ink)", "stroke-width": 1, "vector-effect": "non-scaling-stroke"});
  const rule = p => svg("line", {x1: 0, x2: W, y1: p * H, y2: p * H, stroke: "var(--rule)", "vector-effect": "non-scaling-stroke"});
  const grid = [0, 0.5, 1].map(rule);
  // A step without a value breaks the line; a value between two such steps is a dot.
  const stroke = (colour, width, d) => svg("path", {fill: "none", stroke: `var(${colour})`, "stroke-width": width, d,
    "stroke-linejoin": "round", "stroke-linecap": "round", "vector-effect": "non-scaling-stroke"});
  const known = (v, i) => (v[i] ?? null) !== null, point = (v, i) => `${x(i).toFixed(1)},${y(v[i]).toFixed(1)}`;
  const line = v => v.map((_, i) => known(v, i) ? (known(v, i - 1) ? "L" : "M") + point(v, i) : "").join("");
  const dots = v => v.map((_, i) => known(v, i) && !known(v, i - 1) && !known(v, i + 1) ? `M${point(v, i)}h0` : "").join("");
  const paths = c.lines.flatMap(([, v, colour]) => [stroke(colour, 1.6, line(v)), stroke(colour, 5, dots(v))]);
  const picture = svg("svg", {viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `${c.title}, 0 to ${c.form(high)}, over steps ${first} to ${final}`}, ...grid, ...paths, cursor);
  const pick = event => { const box = picture.getBoundingClientRect(); 
    const there = (event.clientX - box.left) / box.width * W;
    go(steps.reduce((best, _, i) => Math.abs(x(i) - there) < Math.abs(x(best) - there) ? i : best, 0)); };
  picture.onpointerdown = event => { picture.setPointerCapture(event.pointerId); pick(event); };
  picture.onpointermove = event => { if (event.buttons) pick(event); };
  const legend = el("p");
  const update = () => {
    cursor.setAttribute("x1", x(at)); cursor.setAttribute("x2", x(at));
    legend.replaceChildren(...c.lines.map(([name, v, colour]) => el("span", {}, el("i", {style: `background:var(${colour})`}),
      `${name} ${v[at] === null ? "-" : c.form(v[at])}`)));
  };
  return {node: el("div", {class: "chart"}, el("h3", {}, c.title, el("small", {}, `0 to ${c.form(high)}`)), picture,
    el("p", {class: "ends"}, el("span", {}, `step ${first}`), final > first ? el("span", {}, String(final)) : ""), legend), update};
}

function card(s, top) {
  const kind = s[V] === "r" ? "right" : s[V] === "w" ? "wrong" : "";
  const head = el("h4", {}, el("b", {class: kind}, `${MARK[s[V]]} ${WORD[s[V]]}`),
    el("span", {}, `advantage ${s[ADV] > 0 ? "+" : ""}${number(s[ADV])}`),
    el("span", {}, `${s[TOK]} tokens` + (s[THINK] ? `, ${s[THINK]} thinking` : ", at once") + (s[CUT] ? ", cut off" : "")));
  const made = el("div", {class: "card", style: s[ADV] ? `border-left-color:${shade(s[ADV], top)}` : null}, head);
  if (s.length > REASON) {
    if (s[REASON]) made.append(el("pre", {class: "thought"}, s[REASON]));
    made.append(el("pre", {class: "said"}, s[TEXT] || "(nothing)"));
  }
  return made;
}
function group(g) {
  const top = Math.max(1e-9, ...g.s.map(s => Math.abs(s[ADV]))), shown = open.has(g.k), told = "p" in g;
  const ordered = [...g.s].sort((a, b) => b[ADV] - a[ADV] || a[TOK] - b[TOK]);
  const dots = el("span", {class: "dots"}, ...ordered.map(s => el("span", {class: "dot",
    style: `background:${shade(s[ADV], top)}` + (s[ADV] && force(s[ADV], top) > 55 ? ";color:var(--ground)" : ""),
    title: `${WORD[s[V]]}, advantage ${number(s[ADV])}, ${s[TOK]} tokens`}, MARK[s[V]])));
  const made = el("div", {class: spread(g) ? "g" : "g mute"});
  made.append(el("button", {"aria-expanded": shown, onclick: () => { shown ? open.delete(g.k) : open.add(g.k); auto = false; list(); }},
    el("span", {}, shown ? "▾" : "▸"), el("b", {}, g.f + (g.l ? `, ${g.l}` : "")), el("span", {class: "key"}, told ? g.p : g.k), dots,
    el("span", {class: "sum"}, `${percent(share(g))} · ${mean(g.s.map(s => s[TOK])).toFixed(0)} tokens`)));
  if (shown) {
    const ask = told ? el("div", {class: "ask"}, el("pre", {}, g.p), `expected: `, el("code", {}, g.a))
      : el("p", {class: "legend"}, "For this group the run saved verdicts, advantages and lengths, but no texts.");
    made.append(el("div", {class: "inner"}, ask, el("div", {class: "cards"}, ...ordered.map(s => card(s, top)))));
  }
  return made;
}
const ORDERS = {spread: ["variance of rewards", (a, b) => spread(b) - spread(a) || ("p" in b) - ("p" in a)],
  texts: ["with texts first", (a, b) => ("p" in b) - ("p" in a) || spread(b) - spread(a)],
  worst: ["fewest right", (a, b) => share(a) - share(b)], best: ["most right", (a, b) => share(b) - share(a)],
  long: ["longest", (a, b) => mean(b.s.map(s => s[TOK])) - mean(a.s.map(s => s[TOK]))], drawn: ["as drawn", () => 0]};

const app = document.getElementById("app"), parts = CHARTS.filter(c => !silent(c)).map(chart);
const quiet = CHARTS.filter(silent).map(c => c.title.toLowerCase());
const slider = el("input", {type: "range", min: 0, max: steps.length - 1, value: 0, "aria-label": "step", oninput: () => go(+slider.value)});
const label = el("strong"), now = el("div", {class: "now"}), groups = el("div"), title = el("h2");
const play = el("button", {onclick: toggle}, "play");
const families = [...new Set(steps.flatMap(s => s.groups.map(g => g.f)))].sort();
app.className = "ui";
app.append(el("div", {class: "bar"}, label, el("button", {onclick: () => go(at - 1), "aria-label": "step before"}, "◂"), slider,
  el("button", {onclick: () => go(at + 1), "aria-label": "next step"}, "▸"), play, now),
  el("div", {class: "charts"}, ...parts.map(p => p.node)),
  quiet.length ? el("p", {class: "legend"}, `0 at every step: ${quiet.join("; ")}.`) : "",
  el("div", {class: "tools"}, title,
    el("label", {}, "order ", el("select", {onchange: e => { sort = e.target.value; list(); }},
      ...Object.entries(ORDERS).map(([k, v]) => el("option", {value: k}, v[0])))),
    el("label", {}, "family ", el("select", {onchange: e => { family = e.target.value; list(); }}, el("option", {value: ""}, "all"),
      ...families.map(f => el("option", {value: f}, f))))),
  el("p", {class: "legend"}, "One square is one sample: ✓ right, ✕ wrong, ○ not graded. Blue has a positive advantage, orange a negative one. ",
    "A stronger colour means a larger advantage. A group with equal rewards has no gradient. ",
    "Arrow keys or a click on a chart change the step."), groups);
document.getElementById("facts").textContent = data.facts.join(" · ");

function list() {
  const step = steps[at];
  const chosen = step.groups.filter(g => !family || g.f === family).sort(ORDERS[sort][1]);
  if (auto) open = new Set(chosen.filter(g => "p" in g).slice(0, 1).map(g => g.k));
  title.textContent = `${chosen.length} group${chosen.length === 1 ? "" : "s"} of step ${step.step}`;
  groups.replaceChildren(...chosen.map(group));
}
function go(to) {
  at = Math.max(0, Math.min(steps.length - 1, to));
  const step = steps[at], m = step.metrics, all = step.groups.flatMap(g => g.s);
  slider.value = at;
  label.textContent = `step ${step.step} of ${steps[steps.length - 1].step}`;
  const told = [["right", percent(mean(all.filter(s => s[V] !== "u").map(s => +(s[V] === "r"))))], ["samples", all.length],
    ["with gradient", `${step.groups.filter(spread).length} of ${step.groups.length} groups`],
    ["mean length", number(mean(all.map(s => s[TOK])))]];
  if ("loss" in m) told.push(["loss", number(m.loss)]);
  if ("grad_norm" in m) told.push(["gradient", number(m.grad_norm)]);
  now.replaceChildren(...told.map(([name, value]) => el("span", {}, name + " ", el("b", {}, String(value)))));
  parts.forEach(p => p.update());
 
  list();
  history.replaceState(null, "", "#" + step.step);
}
function toggle() {
  if (playing) { clearInterval(playing); playing = 0; play.textContent = "play"; return; }
  if (at === steps.length - 1) go(0);
  play.textContent = "stop";
  playing = setInterval(() => { if (at === steps.length - 1) toggle(); else go(at + 1); }, 600);
}
document.onkeydown = event => {
  if (event.target.tagName === "SELECT" || event.target.type === "range") return;
  const to = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1}[event.key];
  if (to !== undefined) { event.preventDefault(); go(to); }
};
const wanted = steps.findIndex(s => "#" + s.step === location.hash);
go(wanted >= 0 ? wanted : steps.length - 1);
