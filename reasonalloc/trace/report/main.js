// ---- The page: what is chosen, and who is told ----

const input = JSON.parse(byId("data").textContent);
const traces = input.traces.map((raw) => new Trace(raw));

const MOSTLY_SHARED = 0.5; // of the shorter text

const state = {
  a: traces[0], b: traces[1] || null, t: 0, layer: null, head: null, view: "a", map: "a", unit: "slots", shared: 0, last: 1,
  // The heads that are looked at, as numbers.
  selected() {
    const { layers, heads } = this.a, result = [];
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        if ((this.layer === null || layer === this.layer) && (this.head === null || head === this.head)) result.push(layer * heads + head);
      }
    }
    return result;
  },
  // The traces that charts show, with their letters.
  pair() {
    return this.b && sameShape(this.a, this.b) ? [["A", this.a], ["B", this.b]] : [["", this.a]];
  },
  // A head, or all of them when it was chosen already.
  select(head) {
    const layer = Math.floor(head / this.a.heads), own = head % this.a.heads;
    const again = this.layer === layer && this.head === own;
    [this.layer, this.head] = again ? [null, null] : [layer, own];
    byId("layer").value = again ? "" : layer;
    byId("head").value = again ? "" : own;
    drawAll();
  },
};

const reading = new Reading(state), comparing = new Comparing(state), budgetMap = new BudgetMap(state);
const retention = new Retention(state), scores = new Scores(state, input.quantiles);
const plots = [comparing.plot, budgetMap.plot, retention.plot, scores.plot, scores.lost];

function drawAll() {
  for (const part of [comparing, budgetMap, retention, scores]) part.draw();
  reading.repaint();
}

function moveTo(t) {
  state.t = Math.min(Math.max(Math.round(t), 0), state.last);
  const slider = byId("time");
  slider.value = state.t;
  const { a } = state, seen = Math.min(state.t, a.n), share = seen ? a.totalSlots(seen) / (a.count * seen) : 1;
  slider.setAttribute("aria-valuetext", `${state.t} of ${state.last} tokens, after cut ${a.done(seen)} of ${a.cuts.length}`);
  byId("now").replaceChildren(bold(number(state.t)), ` of ${number(state.last)} tokens · cut ${a.done(seen)} of ${a.cuts.length} · `, bold(percent(share)), " of the slots held");
  reading.paint();
  reading.follow();
  comparing.paint();
  for (const plot of plots) plot.moveTo(state.t);
}

// ---- Which traces ----

function describeTraces() {
  const picker = (letter, chosen, none) => {
    const select = element("select", { "aria-label": `Trace ${letter}` });
    if (none) select.append(element("option", { value: "" }, "none"));
    traces.forEach((trace, i) => select.append(element("option", { value: i }, trace.name)));
    select.value = chosen ? traces.indexOf(chosen) : "";
    select.addEventListener("change", () => {
      state[letter.toLowerCase()] = select.value === "" ? null : traces[Number(select.value)];
      choose();
    });
    return select;
  };
  const figures = (x) => element("span", { class: "figures" }, `${x.model} · ${x.method}, ${x.size} · ${number(x.n)} tokens, ${x.cuts.length} cuts · ${x.layers} × ${x.heads} heads · ${percent(x.ratio)} of the slots kept`);
  const nodes = [];
  for (const [letter, trace] of [["A", state.a], ["B", state.b]]) {
    if (traces.length < 2 && letter === "B") continue;
    const label = traces.length > 1 ? [element("span", { class: `letter ${letter.toLowerCase()}` }, letter), picker(letter, trace, letter === "B")] : [bold(trace.name)];
    nodes.push(element("div", { class: "trace" }, ...label, ...(trace ? [figures(trace)] : [])));
  }
  byId("which").replaceChildren(...nodes);
  const source = [state.a, ...(state.b ? [state.b] : [])].map((x) => element("p", {}, `${x.name}: ${Object.entries(x.source).filter(([, value]) => value).map(([key, value]) => `${key} ${value}`).join(", ")}; window ${x.window}, interval ${x.interval}${x.created ? `; recorded ${x.created}` : ""}${x.shown.length < x.cuts.length ? `; budgets and scores of ${x.shown.length} of its ${number(x.cuts.length)} cuts are shown` : ""}.`));
  byId("source").replaceChildren(...source);
}

function fill(id, labels) {
  byId(id).replaceChildren(element("option", { value: "" }, "all"), ...labels.map((x, i) => element("option", { value: i }, String(x))));
}

// After A or B was chosen.
function choose() {
  const { a, b } = state, alike = b && sameShape(a, b);
  state.shared = b ? sharedText(a, b) : 0;
  state.last = Math.max(a.n, b ? b.n : 0, 1);
  state.layer = state.head = null;
  // Texts that soon part have little to compare: then A is what one wants to see first.
  state.view = alike && state.shared >= MOSTLY_SHARED * Math.min(a.n, b.n) ? "diff" : "a";
  state.map = "a";
  const views = [["a", "A"], ...(alike ? [["b", "B"]] : []), ...(alike && state.shared ? [["diff", "A − B"]] : [])];
  choice("views", views, state.view, (value) => {
    const rewrite = reading.trace;
    state.view = value;
    if (reading.trace !== rewrite) reading.write();
    reading.key();
    reading.repaint();
    reading.follow();
  });
  choice("maps", [["a", "A"], ...(alike ? [["b", "B"], ["diff", "A − B"]] : [])], state.map, (value) => {
    state.map = value;
    budgetMap.draw();
  });
  fill("layer", a.layerNumbers);
  fill("head", Array.from({ length: a.heads }, (_, i) => i));
  byId("time").max = state.last;
  const marks = [...a.cuts].filter((_, i) => i % Math.ceil(a.cuts.length / 200) === 0);
  byId("ticks").replaceChildren(
    element("i", { class: "prompt", title: "end of the prompt", style: { left: `${(100 * a.prompt) / state.last}%` } }),
    ...marks.map((t) => element("i", { style: { left: `${(100 * t) / state.last}%` } })),
  );
  describeTraces();
  reading.write();
  reading.key();
  drawAll();
  moveTo(state.last);
}

// ---- Time ----

let playing = 0;

function stop() {
  cancelAnimationFrame(playing);
  playing = 0;
  byId("play").innerHTML = "&#9654;";
  byId("play").setAttribute("aria-label", "Play");
}

function play() {
  if (playing) { stop(); return; }
  if (state.t >= state.last) moveTo(Math.min(state.a.prompt, state.last - 1));
  byId("play").innerHTML = "&#10073;&#10073;";
  byId("play").setAttribute("aria-label", "Pause");
  const rate = state.last / 25000; // the whole chain in 25 seconds
  let place = state.t, before = performance.now();
  const tick = (now) => {
    place += (now - before) * rate;
    before = now;
    if (Math.floor(place) !== state.t) moveTo(Math.floor(place));
    if (state.t >= state.last) stop(); else playing = requestAnimationFrame(tick);
  };
  playing = requestAnimationFrame(tick);
}

function toCut(step) {
  const stops = [0, ...state.a.cuts, state.last];
  const next = step > 0 ? stops.find((x) => x > state.t) : stops.findLast((x) => x < state.t);
  if (next !== undefined) moveTo(next);
}

byId("time").addEventListener("input", (event) => { stop(); moveTo(Number(event.target.value)); });
byId("time").addEventListener("keydown", (event) => {
  const step = { PageUp: 1, PageDown: -1 }[event.key];
  if (step) { event.preventDefault(); stop(); toCut(step); }
  if (event.key === " ") { event.preventDefault(); play(); }
});
byId("play").addEventListener("click", play);
byId("back").addEventListener("click", () => { stop(); toCut(-1); });
byId("forth").addEventListener("click", () => { stop(); toCut(1); });
for (const id of ["layer", "head"]) {
  byId(id).addEventListener("change", (event) => {
    state[id] = event.target.value === "" ? null : Number(event.target.value);
    drawAll();
  });
}
choice("units", [["slots", "slots"], ["share", "share"]], state.unit, (value) => { state.unit = value; retention.draw(); });

let width = 0;
new ResizeObserver(() => {
  if (byId("charts").clientWidth === width) return;
  width = byId("charts").clientWidth;
  for (const part of [comparing, budgetMap, retention, scores]) part.draw();
}).observe(byId("charts"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
choose();
