// ---- What each head holds over time ----

class Retention {
  constructor(state) {
    this.state = state;
    this.plot = new Plot("retention", 230, "Slots that each head holds over the tokens of the chain");
    this.plot.hover = (t) => this.#describe(t);
  }

  // Slots of some heads, on the average: [t, slots]..., a saw whose teeth are the cuts.
  #saw(trace, heads) {
    const width = trace.cuts.length + 1, points = [[0, 0]];
    const went = (c) => heads.reduce((sum, head) => sum + trace.went[head * width + c], 0) / heads.length;
    let before = 0;
    for (let c = 1; c < width; c++) {
      const seen = trace.cuts[c - 1], after = went(c);
      points.push([seen, seen - before], [seen, seen - after]);
      before = after;
    }
    points.push([trace.n, trace.n - before]);
    return points;
  }

  #unit(points) {
    return this.state.unit === "slots" ? points : points.map(([t, slots]) => [t, t ? slots / t : 1]);
  }

  draw() {
    const { state, plot } = this, heads = state.selected();
    const lines = heads.map((head) => this.#unit(this.#saw(state.a, [head])));
    const colorA = colorOf("a"), colorB = colorOf("b");
    const means = [[this.#unit(this.#saw(state.a, heads)), colorA]];
    if (state.b && sameShape(state.a, state.b)) means.push([this.#unit(this.#saw(state.b, heads)), colorB]);
    let top = state.unit === "slots" ? 1 : 1.02;
    if (state.unit === "slots") {
      for (const points of [...lines, ...means.map(([x]) => x)]) for (const [, value] of points) top = Math.max(top, value);
      top *= 1.03;
    }
    plot.begin(state.last, 0, top);
    plot.axes(state.unit === "slots" ? number : (x) => percent(x, 0), state.unit === "slots" ? "slots" : "of the tokens seen");
    lines.forEach((points, i) => {
      const depth = state.a.layers > 1 ? Math.floor(heads[i] / state.a.heads) / (state.a.layers - 1) : 0;
      if (heads.length > 1) plot.line(points, css(mix(DEPTH, depth), 0.45), 0.9);
    });
    for (const [points, color] of means) {
      if (color === colorA) plot.line(points, styled("card"), 4.5);
      plot.line(points, color, 2.4, color === colorB ? [6, 5] : []); // dashed: the two may be the same
    }
    plot.moveTo(state.t);
    byId("retention-key").replaceChildren(
      ...(heads.length > 1 ? [rampKey(DEPTH, `each head${means.length > 1 ? " of A" : ""}: first layer`, "last layer")] : []),
      swatchKey(colorA, `${heads.length > 1 ? "mean" : "this head"}${means.length > 1 ? " in A" : ""}`),
      ...(means.length > 1 ? [swatchKey(colorB, "in B, dashed")] : []),
    );
  }

  #describe(t) {
    const { state } = this, heads = state.selected(), nodes = [lineOf(bold(`${number(t)} tokens`))];
    for (const [name, trace] of state.pair()) {
      const slots = heads.map((head) => trace.slots(head, t)).sort((x, y) => x - y);
      const mean = slots.reduce((x, y) => x + y, 0) / slots.length;
      const share = t ? ` (${percent(mean / Math.min(t, trace.n))})` : "";
      const range = slots.length > 1 ? `, heads ${number(slots[0])} to ${number(slots[slots.length - 1])}` : "";
      nodes.push(lineOf(name ? bold(`${name} `) : "", `${mean.toFixed(0)} slots a head${share}${range}`));
    }
    return nodes;
  }
}
