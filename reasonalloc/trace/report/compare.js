// ---- Two traces against each other ----

class Comparing {
  constructor(state) {
    this.state = state;
    this.plot = new Plot("overlap", 130, "Share of the slots held by A or B that both hold, over the tokens of the chain");
    this.plot.hover = (t) => [lineOf(bold(`${number(t)} tokens`)), lineOf(`both hold ${percent(this.#share(t))} of what either holds`)];
    this.curve = [];
  }

  get possible() {
    const { a, b, shared } = this.state;
    return Boolean(b) && sameShape(a, b) && shared > 0;
  }

  #share(t) {
    const { both, a, b } = overlap(this.state.a, this.state.b, this.state.selected(), Math.min(t, this.state.shared));
    return both + a + b ? both / (both + a + b) : 1;
  }

  draw() {
    const { state, plot } = this;
    byId("comparing").hidden = !state.b;
    if (!state.b) return;
    plot.box.hidden = !this.possible;
    if (this.possible) {
      const cuts = [...new Set([...state.a.cuts, ...state.b.cuts])].filter((t) => t <= state.shared).sort((x, y) => x - y);
      const every = Math.ceil(cuts.length / 60);
      const times = [0, ...cuts.filter((_, i) => i % every === 0), state.shared];
      this.curve = times.map((t) => [t, this.#share(t)]);
      plot.begin(state.last, 0, 1.02);
      plot.axes((x) => percent(x, 0), "in common");
      plot.line(this.curve, GRAY, 2);
      plot.moveTo(state.t);
    }
    this.paint();
  }

  paint() {
    const { state } = this, { a, b } = state, box = byId("shares");
    if (!b) return;
    const rows = [
      ["", ...[a, b].map((x, i) => element("span", { class: `letter ${"ab"[i]}` }, "AB"[i]))],
      ["method", a.method, b.method],
      ["allowed", a.size, b.size],
      ["slots held now, all heads", ...[a, b].map((x) => `${number(x.totalSlots(state.t))} (${percent(x.totalSlots(state.t) / (x.count * Math.max(Math.min(state.t, x.n), 1)))})`)],
      ["attention lost at a cut, mean", ...[a, b].map((x) => percent(x.lost_mass, 2))],
    ];
    const table = element("table", {}, element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((x) => element("td", {}, x))))));
    const nodes = [table];
    if (this.possible) {
      const t = Math.min(state.t, state.shared), parts = overlap(a, b, state.selected(), t);
      const whole = Math.max(parts.both + parts.a + parts.b, 1);
      const names = { a: "only A", both: "both", b: "only B" };
      const stack = element("div", { class: "stack", role: "img", "aria-label": `of the slots held: both ${parts.both}, only A ${parts.a}, only B ${parts.b}` });
      for (const [key, text] of Object.entries(names)) {
        stack.append(element("div", { class: key, "data-slots": parts[key], style: { width: `${(100 * parts[key]) / whole}%` }, title: `${text}: ${number(parts[key])} slots` }));
      }
      const colors = { a: colorOf("a"), both: GRAY, b: colorOf("b") };
      const texts = Object.entries(names).map(([key, text]) => swatchKey(colors[key], `${text} ${number(parts[key])} (${percent(parts[key] / whole, 0)})`));
      nodes.unshift(stack, element("div", { class: "key" }, ...texts));
      if (state.shared < Math.max(a.n, b.n)) nodes.push(element("p", { class: "key" }, `The texts are the same for ${number(state.shared)} tokens; beyond them tokens are not compared.`));
    } else {
      nodes.push(element("p", { class: "key" }, "These traces are of other texts or of models of another shape: their tokens cannot be compared."));
    }
    box.replaceChildren(...nodes);
  }
}
