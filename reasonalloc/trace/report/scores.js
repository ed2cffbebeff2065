// ---- Quantiles of the scores, and the attention that evicted tokens had ----

class Scores {
  constructor(state, quantiles) {
    this.state = state;
    this.levels = quantiles;
    this.plot = new Plot("scores", 170, "Quantiles of the scores of the tokens that could go, at each cut");
    this.lost = new Plot("lost", 110, "Attention of the newest query on what was let go, at each cut");
    this.plot.hover = (t) => this.#describe(t);
    this.lost.hover = (t) => this.#describe(t);
  }

  // Mean over heads that were cut, for each cut that is shown.
  #mean(trace, heads, read) {
    return Array.from(trace.shown, (_, cut) => {
      let sum = 0, count = 0;
      for (const head of heads) {
        const value = read(cut * trace.count + head);
        if (Number.isFinite(value)) { sum += value; count++; }
      }
      return count ? sum / count : NaN;
    });
  }

  #series(trace) {
    const heads = this.state.selected(), width = this.levels.length;
    const quantiles = this.levels.map((_, q) => this.#mean(trace, heads, (i) => trace.quantiles[i * width + q]));
    return { trace, quantiles, lost: this.#mean(trace, heads, (i) => trace.lost[i]) };
  }

  draw() {
    const { state, plot } = this;
    this.series = state.pair().map(([name, trace]) => ({ name, ...this.#series(trace) }));
    // Other scorers have other units, so B is drawn into A's scale only where it is the same one.
    const drawn = this.series.filter((x) => x.name !== "B" || scorer(state.a) === scorer(state.b));
    const inner = drawn.flatMap((x) => [...x.quantiles[1], ...x.quantiles[5]]).filter(Number.isFinite);
    const [low, high] = inner.length ? [Math.min(...inner), Math.max(...inner)] : [0, 1];
    const room = (high - low || Math.abs(high) || 1) * 0.15;
    plot.begin(state.last, low - room, high + room);
    plot.axes((x) => short(x, high - low), "score");
    for (const { name, trace, quantiles } of [...drawn].reverse()) {
      const color = colorOf(name), light = faded(color, 0.13), strong = faded(color, name === "B" ? 0.22 : 0.28);
      const zip = (p, q) => trace.shownAt.map((t, i) => [t, quantiles[p][i], quantiles[q][i]]);
      plot.band(zip(1, 5), light);
      plot.band(zip(2, 4), strong);
      plot.line(trace.shownAt.map((t, i) => [t, quantiles[3][i]]), color, 2);
    }
    plot.moveTo(state.t);
    this.#drawLost();
    byId("scores-key").replaceChildren(
      ...[
        "score: line median, dark 25 to 75 %, light 5 to 95 % of the tokens that could go",
        "lost: attention of the newest query on what went",
        "means of the heads chosen above the text",
        ...(this.series.length > drawn.length ? ["B has another scorer: choose it as A to see its scores"] : []),
      ].map((text) => element("span", {}, text)),
    );
  }

  #drawLost() {
    const { state, lost } = this;
    const top = Math.max(1e-6, ...this.series.flatMap((x) => x.lost).filter(Number.isFinite));
    lost.begin(state.last, 0, top * 1.1);
    lost.axes((x) => percent(x, top < 0.05 ? 1 : 0), "lost");
    this.series.forEach(({ name, trace, lost: values }, i) => {
      const width = Math.max(1, Math.min(5, lost.innerWidth / (trace.shown.length + 1) / 3));
      lost.ink.fillStyle = colorOf(name);
      values.forEach((value, cut) => {
        if (!Number.isFinite(value)) return;
        const x = lost.x(trace.shownAt[cut]) + (i - this.series.length / 2) * width, y = lost.y(value);
        lost.ink.fillRect(x, y, width, lost.y(0) - y);
      });
    });
    lost.moveTo(state.t);
  }

  #describe(t) {
    const nodes = [];
    for (const { name, trace, quantiles, lost } of this.series) {
      const cut = upTo(trace.shownAt, t) - 1;
      if (cut < 0) continue;
      nodes.push(lineOf(bold(`${name} cut ${trace.shown[cut] + 1}`.trim()), ` at ${number(trace.shownAt[cut])} tokens`));
      const texts = this.levels.map((q, i) => `${percent(q, 0)}: ${quantiles[i][cut].toPrecision(4)}`);
      nodes.push(small(`scores ${texts.join(", ")}`), small(`attention lost ${percent(lost[cut], 2)}`));
    }
    return nodes.length ? nodes : null;
  }
}

function scorer(trace) { return trace.source.scorer; }

function short(x, span) {
  if (x === 0) return "0";
  return span < 0.001 || Math.abs(x) >= 1e5 ? x.toExponential(1) : String(Number(x.toPrecision(span < 0.05 * Math.abs(x) ? 4 : 3)));
}
