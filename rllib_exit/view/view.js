// The viewer's page. All text is put in as text nodes: nothing that a model or a data set wrote is ever markup.

const token = location.hash.slice(1);
const $ = (id) => document.getElementById(id);
const VIEWS = ["rollouts", "group", "task", "buffer"];
const COLUMNS = ["rollout", "iteration", "kind", "starting_turn", "depth", "return", "quality", "advantage",
  "learnability", "response_tokens", "task_id", "response"];
const MINOR = new Set(["iteration", "return", "starting_turn", "depth", "advantage", "learnability", "response_tokens", "task_id"]);
const LABELS = { starting_turn: "turn", response_tokens: "tokens", task_id: "task" };
let stamp = "", drawing = 0;

// Elements, numbers and texts.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Characters that do not show, or that turn others around, are shown as escapes.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const visible = (text) => String(text ?? "").replace(/\r\n/g, "\n").replace(HIDDEN,
  (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const number = (value, digits = 3) => typeof value !== "number" ? visible(value ?? "–")
  : Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(digits)));
const block = (text) => el("pre", { tabindex: 0 }, visible(text));
const facts = (pairs) => el("dl", {}, Object.entries(pairs).filter(([, value]) => value !== null && value !== undefined)
  .map(([name, value]) => el("div", {}, el("dt", {}, visible(name)), el("dd", {}, number(value)))));

// The address holds what is shown, and behind # the token.

const state = () => Object.fromEntries(new URLSearchParams(location.search));
const address = (values) => "?" + new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value !== undefined)) + "#" + token;
function go(values, replace = false) {
  history[replace ? "replaceState" : "pushState"](null, "", address(values));
  draw();
}
function link(values, text, attributes = {}) {
  const open = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(values);
    scrollTo(0, 0);
  };
  return el("a", { href: address(values), onclick: open, ...attributes }, text);
}

async function ask(name, values = {}) {
  const response = await fetch(`/api/${name}?` + new URLSearchParams(values), { headers: { "X-View-Token": token } });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// The list.

const FILTERS = ["first", "last", "kind", "ending", "min_return", "max_return", "min_quality", "max_quality", "task", "text"];

async function drawRollouts(values, current) {
  const asked = { sort: "iteration", descending: "true", offset: "0" };
  for (const name of [...FILTERS, ...Object.keys(asked)]) if (values[name]) asked[name] = values[name];
  for (const name of FILTERS) {
    const field = $("filters").elements[name];
    if (field !== document.activeElement) field.value = values[name] ?? "";
  }
  $("count").textContent = "searching …";
  const page = await ask("rollouts", asked);
  if (!current()) return;
  const offset = Number(asked.offset), descending = asked.descending === "true";
  const heads = COLUMNS.map((name) => {
    const label = LABELS[name] ?? name, sorted = name === asked.sort;
    if (name === "rollout" || name === "response") return el("th", { scope: "col" }, label);
    const order = sorted ? (descending ? "descending" : "ascending") : "none";
    const sort = () => go({ ...state(), sort: name, descending: String(sorted ? !descending : true), offset: "" });
    return el("th", { scope: "col", "aria-sort": order, class: MINOR.has(name) ? "minor" : undefined },
      el("button", { type: "button", onclick: sort }, label + (sorted ? (descending ? " ↓" : " ↑") : "")));
  });
  const rows = page.rows.map((row) => el("tr", {}, COLUMNS.map((name) => {
    if (name === "rollout") {
      return el("td", {}, link({ view: "group", iteration: row.iteration, group: row.group_id, g: row.g },
        `${row.group_id}/${row.g}`));
    }
    if (name === "task_id") return el("td", { class: "minor id" }, link({ view: "task", task: row.task_id }, visible(row.task_id)));
    if (name === "response") return el("td", { class: "text" }, flaws(row), visible(row.snippet));
    return el("td", { class: MINOR.has(name) ? "minor" : undefined }, number(row[name]));
  })));
  $("list").replaceChildren(el("thead", {}, el("tr", {}, heads)), el("tbody", {}, rows));
  $("count").textContent = page.total ? `${offset + 1} to ${offset + rows.length} of ${page.total} rollouts` : "no rollouts";
  $("previous").disabled = offset === 0;
  $("next").disabled = offset + rows.length >= page.total;
  $("previous").onclick = () => go({ ...state(), offset: Math.max(0, offset - 50) || "" });
  $("next").onclick = () => go({ ...state(), offset: offset + 50 });
}

const flaws = (row) => [!row.valid && "invalid ", row.truncated && "truncated "].filter(Boolean)
  .map((text) => el("span", { class: "flaw" }, text));

// A group, side by side.

const PAINTS = { text: "text", advantage: "tokens by advantage", difference: "tokens by log-probability difference",
  mask: "tokens by loss mask" };

async function drawGroup(values, current) {
  const asked = { iteration: values.iteration, group: values.group }, paint = values.paint ?? "text";
  const [{ rollouts }, { segments }] = await Promise.all([ask("group", asked), paint === "text" ? {} : ask("tokens", asked)]);
  if (!current()) return;
  const first = rollouts[0], history = first.turns.slice(0, first.starting_turn);
  const head = [
    el("h2", {}, `Group ${first.group_id}, iteration ${first.iteration}`),
    facts({ kind: first.kind, "starting turn": first.starting_turn, depth: first.depth, learnability: first.learnability,
      "mean return": first.group_return_mean, "standard deviation": first.group_return_std,
      "mean quality": first.group_quality_mean, "not judged": first.group_dropped || null, policy: first.policy_version }),
    el("p", {}, "Task ", link({ view: "task", task: first.task_id }, visible(first.task_id)), ": what came from what"),
    first.prompt !== null && [el("h3", {}, "Prompt"), block(first.prompt)],
    first.gold !== null && [el("h3", {}, "Gold answer"), block(first.gold)],
    history.length > 0 && el("details", {}, el("summary", {}, `History of ${history.length} turns`), history.map(turnOf)),
    first.iterate && [el("h3", {}, `Iterate to ${first.kind === "improve" ? "improve" : "diverge from"}`), turnOf(first.iterate)],
  ];
  const chosen = (name) => go({ ...state(), paint: name }, true);
  const paints = el("fieldset", {}, el("legend", {}, "Show"), Object.entries(PAINTS).map(([name, label]) => el("label", {},
    el("input", { type: "radio", name: "paint", value: name, checked: name === paint, onchange: () => chosen(name) }), label)));
  const scale = paint === "text" || !segments ? null : scaleOf(paint, rollouts, segments);
  const cards = rollouts.map((row) => el("article", { class: String(row.g) === values.g ? "chosen" : undefined },
    el("h3", {}, `Rollout ${row.g} `, flaws(row)),
    facts({ return: row.return, quality: row.quality, advantage: row.advantage,
      "without diversity": row.diversity === null ? null : row.plain_advantage, diversity: row.diversity,
      tokens: row.response_tokens }), facts(row.metrics),
    scale ? segments.filter((of) => of.g === row.g).map((of) => tokensOf(of, row, scale))
      : row.turns.slice(row.starting_turn).map((turn, i) => turnOf(turn, row.starting_turn + i))));
  const focused = document.activeElement?.name === "paint";
  $("group").replaceChildren(...head.flat().filter(Boolean), paints,
    scale ? el("p", { class: "quiet" }, scale.legend)
      : paint !== "text" && el("p", { class: "quiet" }, "The log has no tokens of this group: train with log_tokens=True.") || "",
    el("div", { class: "columns", tabindex: 0, role: "region", "aria-label": "Rollouts side by side" }, cards));
  if (focused) $("group").querySelector("input:checked").focus();
}

function turnOf(turn, t) {
  const title = (typeof t === "number" ? `Turn ${t}, ` : "") + `depth ${turn.depth}`;
  return el("div", {}, el("h4", {}, title + (turn.quality === null ? "" : `, quality ${number(turn.quality)}`)),
    block(turn.response), turn.feedback !== null && [el("h4", {}, "Feedback"), block(turn.feedback)]);
}

// What a token is coloured by: a value, and the value of the full colour.
function scaleOf(paint, rollouts, segments) {
  const advantages = Object.fromEntries(rollouts.map((row) => [row.g, row.advantage]));
  const difference = ([, , engine, learner]) => typeof engine === "number" && typeof learner === "number" ? learner - engine : null;
  const value = { advantage: (piece, g) => advantages[g], difference, mask: () => 1 }[paint];
  let most = 0;
  for (const { g, pieces } of segments) for (const piece of pieces) if (piece.length > 1) most = Math.max(most, Math.abs(value(piece, g) ?? 0));
  const legend = {
    advantage: `Blue: made more likely. Orange: made less likely. Full colour: an advantage of ±${number(most)}. Grey: not generated here.`,
    difference: `Learner minus engine. Blue: the learner finds it more likely. Orange: less. Full colour: ±${number(most)}. No colour: equal, or the learner did not train on it.`,
    mask: "Green: generated by the policy, so in the loss mask. Grey: context, which is not trained on.",
  }[paint];
  return { paint, legend, value, most: most || 1 };
}

function tokensOf({ g, pieces }, row, { paint, value, most }) {
  const painted = pieces.map((piece) => {
    if (piece.length === 1) return el("span", { class: "context" }, visible(piece[0]));
    const of = value(piece, g) ?? 0;
    const node = el("span", paint === "mask" ? { class: "mask" } : { class: of < 0 ? "low" : "high", "--a": Math.abs(of) / most * 0.75 },
      visible(piece[0]));
    node.piece = piece;
    return node;
  });
  return el("pre", { class: "tokens" }, painted);
}

function tell(event) {
  const piece = event.target.piece;
  if (!piece) return;
  const [text, id, engine, learner] = piece;
  const both = typeof engine === "number" && typeof learner === "number";
  $("token").hidden = false;
  $("token").textContent = `“${visible(text).replace(/\n/g, "\\n")}” token ${id}, log-probability: engine ${number(engine, 4)}, ` +
    `learner ${number(learner, 4)}` + (both ? `, difference ${number(learner - engine, 2)}` : "");
}

// What came from what.

async function drawTask(values, current) {
  const family = await ask("lineage", { task: values.task });
  if (!current()) return;
  const items = new Map(), root = el("ul", { class: "tree" });
  for (const group of family.groups) {
    const qualities = group.rollouts.map((rollout) => rollout.quality);
    const mean = qualities.reduce((sum, quality) => sum + quality, 0) / qualities.length;
    const from = group.parent ? `, from rollout ${group.parent.g}` : group.kind !== "base" || group.starting_turn ? ", written before the log begins" : "";
    const place = group.starting_turn ? ` of turn ${group.starting_turn}` : "";
    items.set(group.group_id, el("li", {}, el("p", {},
      link({ view: "group", iteration: group.iteration, group: group.group_id }, `${group.kind}${place}, iteration ${group.iteration}`), " ",
      el("span", { class: "dots", "aria-hidden": "true" }, qualities.map((quality) => el("i", { "--a": quality, title: number(quality) }))),
      ` mean quality ${number(mean)}`, el("span", { class: "quiet" }, from)),
      group.iterate !== null && el("p", { class: "text" }, visible(group.iterate))));
  }
  for (const group of family.groups) {
    const parent = group.parent && items.get(group.parent.group_id);
    if (!parent) root.append(items.get(group.group_id));
    else {
      if (parent.lastChild.tagName !== "UL") parent.append(el("ul"));
      parent.lastChild.append(items.get(group.group_id));
    }
  }
  $("task").replaceChildren(...[el("h2", {}, `Task ${visible(family.task_id)}`),
    el("p", {}, link({ view: "rollouts", task: family.task_id }, "its rollouts in the list")),
    family.prompt != null && [el("h3", {}, "Prompt"), block(family.prompt)],
    family.gold != null && [el("h3", {}, "Gold answer"), block(family.gold)],
    el("h3", {}, "From the base answer on"),
    el("p", { class: "quiet" }, "Every line is a group. Its squares are its rollouts, the fuller the higher the quality; below a group stand those that began from what it wrote." +
      (family.left_out ? ` ${family.left_out} later groups are left out.` : "")),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Lineage" }, root)].flat().filter(Boolean));
}

// The task buffer.

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Curves over the iterations, each a list of [low, high], in a box of 1000 by 100.
function chart(label, iterations, curves, classes, top) {
  const x = (i) => iterations.length > 1 ? 1000 * i / (iterations.length - 1) : 500, y = (value) => 100 - 100 * value / (top || 1);
  const paths = curves.map((points, n) => {
    const upper = points.map(([, high], i) => `${x(i)},${y(high)}`), lower = points.map(([low], i) => `${x(i)},${y(low)}`).reverse();
    const line = classes[n] === "line";
    return svg("path", { class: line ? "line" : `area ${classes[n]}`, d: "M" + (line ? upper : [...upper, ...lower]).join("L") + (line ? "" : "Z") });
  });
  const plot = svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...paths);
  return el("figure", {}, plot, el("figcaption", { class: "quiet" },
    `iterations ${iterations[0]} to ${iterations[iterations.length - 1]}; top of the picture: ${number(top)}`));
}

async function drawBuffer(values, current) {
  const buffer = await ask("buffer", values.iteration ? { iteration: values.iteration } : {});
  if (!current()) return;
  const rows = buffer.iterations, iterations = rows.map((row) => row.iteration);
  if (!rows.length) return $("buffer").replaceChildren(el("p", {}, "The log has no task buffer: it was written by an earlier version."));
  const depths = ["depth 0", "1", "2", "3", "4 and more"], zero = (value) => [0, value];
  const layers = depths.map((_, d) => rows.map((row) => {
    const low = row.depths.slice(0, d).reduce((sum, count) => sum + count, 0);
    return [low, low + row.depths[d]];
  }));
  const now = rows.find((row) => row.iteration === buffer.iteration);
  const choose = (event) => go({ ...state(), iteration: iterations[event.target.value] }, true);
  const range = el("input", { type: "range", min: 0, max: rows.length - 1, onchange: choose });
  range.value = iterations.indexOf(buffer.iteration);
  const names = ["score", "measured", "depth", "starting_turn", "draws", "task_id"];
  const focused = document.activeElement?.type === "range";
  $("buffer").replaceChildren(
    el("h2", {}, "Task buffer over time"),
    el("h3", {}, "Instances by depth"),
    el("p", {}, depths.map((label, d) => [el("span", { class: `key d${d}` }), label + "  "]).flat()),
    chart("Instances in the task buffer by depth", iterations, layers, layers.map((_, d) => `d${d}`), Math.max(...rows.map((row) => row.size))),
    el("h3", {}, "Score: lowest, mean and highest"),
    chart("Lowest, mean and highest score in the task buffer", iterations,
      [rows.map((row) => [row.score_min, row.score_max]), rows.map((row) => zero(row.score_mean))], ["d0", "line"], Math.max(...rows.map((row) => row.score_max))),
    el("h3", {}, `After iteration ${buffer.iteration}`),
    el("label", {}, "Iteration", range),
    facts({ instances: now.size, measured: now.measured, "lowest score": now.score_min, "mean score": now.score_mean, "highest score": now.score_max }),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Instances" }, el("table", {},
      el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, LABELS[name] ?? name)))),
      el("tbody", {}, buffer.instances.map((row) => el("tr", {}, names.map((name) => name === "task_id"
        ? el("td", { class: "id" }, link({ view: "task", task: row.task_id }, visible(row.task_id)))
        : el("td", {}, name === "measured" ? (row.measured ? "yes" : "inherited") : number(row[name])))))))),
    buffer.left_out ? el("p", { class: "quiet" }, `and ${buffer.left_out} of lower scores`) : "");
  if (focused) $("buffer").querySelector("input").focus();
}

// Which view is drawn, and when.

const DRAW = { rollouts: drawRollouts, group: drawGroup, task: drawTask, buffer: drawBuffer };

async function draw() {
  const values = state(), view = VIEWS.includes(values.view) ? values.view : "rollouts", mine = ++drawing;
  for (const name of VIEWS) $(name).hidden = name !== view;
  for (const a of document.querySelectorAll("header a")) {
    a.dataset.view === view ? a.setAttribute("aria-current", "page") : a.removeAttribute("aria-current");
  }
  $("token").hidden = true;
  try {
    await DRAW[view](values, () => mine === drawing);
    if (mine === drawing) $("error").hidden = true;
  } catch (error) {
    if (mine === drawing) [$("error").hidden, $("error").textContent] = [false, visible(error.message)];
  }
}

async function poll() {
  try {
    const run = await ask("summary");
    $("name").textContent = document.title = visible(run.name);
    const said = `iterations ${run.first} to ${run.last}, ${run.rollouts} rollouts of ${run.tasks} tasks`;
    if ($("status").textContent !== said) $("status").textContent = said;
    const { view = "rollouts", offset, iteration } = state(), follows = view === "rollouts" ? !offset : view === "buffer" && !iteration;
    if (stamp && stamp !== run.stamp && follows) draw();
    stamp = run.stamp;
  } catch (error) {
    $("status").textContent = `not connected: ${visible(error.message)}`;
  }
}

for (const a of document.querySelectorAll("header a")) a.replaceWith(link({ view: a.dataset.view }, a.textContent, { "data-view": a.dataset.view }));
$("more").open = innerWidth > 640;
let typing;
$("filters").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => go({ view: "rollouts", sort: state().sort, descending: state().descending,
    ...Object.fromEntries(new FormData($("filters"))) }, true), 250);
});
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("clear").addEventListener("click", () => { $("filters").reset(); go({ view: "rollouts" }); });
for (const kind of ["pointerover", "click"]) $("group").addEventListener(kind, tell);
addEventListener("popstate", draw);
draw();
await poll();
setInterval(() => document.hidden || poll(), 3000);
