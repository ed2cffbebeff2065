// ---- Budgets of every head over time ----

class BudgetMap {
  constructor(state) {
    this.state = state;
    this.plot = new Plot("budgets", 100, "Budgets of each layer and head over the tokens of the chain");
    this.plot.hover = (t, y) => this.#describe(t, y);
    this.plot.click = (t, y) => state.select(this.#head(y));
  }

  #head(y) {
    return Math.min(Math.floor((y / this.plot.innerHeight) * this.state.a.count), this.state.a.count - 1);
  }

  // The value that a head has at t: a budget, or A's less B's; null where there is none yet.
  #value(head, t) {
    const { map, a, b } = this.state;
    if (map !== "diff") {
      const value = (map === "b" ? b : a).budget(head, t);
      return value < 0 ? null : value;
    }
    const own = a.budget(head, t), other = b.budget(head, t);
    return own < 0 || other < 0 ? null : own - other;
  }

  #range() {
    const { map, a, b } = this.state;
    if (map === "diff") {
      let most = 1;
      for (const at of new Set([...a.shownAt, ...b.shownAt])) {
        for (let head = 0; head < a.count; head++) most = Math.max(most, Math.abs(this.#value(head, at) ?? 0));
      }
      return [-most, most];
    }
    let low = Infinity, high = 1;
    for (const trace of b && sameShape(a, b) ? [a, b] : [map === "b" ? b : a]) {
      for (const x of trace.budgets) {
        if (x >= 0) [low, high] = [Math.min(low, x), Math.max(high, x)];
      }
    }
    return [Math.min(low, high - 1), high];
  }

  draw() {
    const { state, plot } = this, { a } = state, rows = a.count;
    plot.height = Math.min(Math.max(rows * 4.6, 90), 620) + plot.margin.top + plot.margin.bottom;
    plot.begin(state.last);
    const [low, high] = (this.range = this.#range());
    const ramp = state.map === "diff" ? DIFFERENCE : state.map === "b" ? [[255, 247, 238], [250, 214, 176], [236, 150, 74], [196, 87, 15], [110, 44, 4]] : AMOUNT;
    const ends = [...new Set([0, ...a.shownAt, ...(state.map === "a" || !state.b ? [] : state.b.shownAt)])].sort((x, y) => x - y);
    const height = plot.innerHeight / rows;
    plot.ink.fillStyle = styled("empty");
    plot.ink.fillRect(plot.margin.left, plot.margin.top, plot.innerWidth, plot.innerHeight);
    ends.forEach((from, i) => {
      const left = Math.floor(plot.x(from)), right = Math.ceil(plot.x(ends[i + 1] ?? state.last));
      for (let head = 0; head < rows; head++) {
        const value = this.#value(head, from);
        if (value === null) continue;
        plot.ink.fillStyle = css(mix(ramp, (value - low) / (high - low)));
        const top = Math.round(plot.margin.top + head * height), bottom = Math.round(plot.margin.top + (head + 1) * height);
        plot.ink.fillRect(left, top, right - left, bottom - top);
      }
    });
    this.#frame(height);
    plot.axes(null, a.heads > 1 ? "layer, its heads in rows" : "layer");
    plot.moveTo(state.t);
    byId("budgets-key").replaceChildren(
      state.map === "diff"
        ? rampKey(ramp, `B ${number(high)} slots more`, `A ${number(high)} more`)
        : rampKey(ramp, `${number(low)} slots`, number(high)),
      swatchKey(styled("line"), "nothing cut yet"),
      "click a row to see that head",
    );
  }

  #frame(height) {
    const { plot, state } = this, { a } = state, ink = plot.ink;
    ink.fillStyle = "rgba(255, 255, 255, 0.9)";
    for (let layer = 1; layer < a.layers; layer++) {
      ink.fillRect(plot.margin.left, Math.round(plot.margin.top + layer * a.heads * height) - 0.5, plot.innerWidth, 1);
    }
    ink.fillStyle = styled("soft");
    ink.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    ink.textAlign = "right";
    ink.textBaseline = "middle";
    const step = Math.max(1, Math.ceil(13 / (height * a.heads)));
    for (let layer = 0; layer < a.layers; layer += step) {
      ink.fillText(a.layerNumbers[layer], plot.margin.left - 6, plot.margin.top + (layer + 0.5) * a.heads * height);
    }
    const chosen = state.selected();
    if (chosen.length < a.count) {
      ink.strokeStyle = "#d1242f";
      ink.lineWidth = 1.5;
      const ranges = state.layer === null ? chosen.map((head) => [head, 1]) : [[chosen[0], chosen.length]];
      for (const [head, count] of ranges) {
        ink.strokeRect(plot.margin.left, plot.margin.top + head * height, plot.innerWidth, count * height);
      }
    }
  }

  #describe(t, y) {
    const { state } = this, head = this.#head(y);
    const nodes = [lineOf(bold(state.a.label(head)), ` at ${number(t)} tokens`)];
    const both = state.b && sameShape(state.a, state.b);
    for (const [name, trace] of both ? [["A", state.a], ["B", state.b]] : [["", state.map === "b" ? state.b : state.a]]) {
      const budget = trace.budget(head, t);
      const text = budget < 0 ? "not cut yet" : `budget ${number(budget)}`;
      nodes.push(lineOf(name ? bold(`${name} `) : "", `${text}, holds ${number(trace.slots(head, t))} slots`));
    }
    return nodes;
  }
}
