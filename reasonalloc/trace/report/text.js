// ---- The chain, each token coloured by the heads that hold it ----

const LEVELS = 48; // shades: fewer changes of style while the slider moves
const FULL_DIFFERENCE = 0.5; // of the heads: a difference from here on has the full colour

class Reading {
  constructor(state) {
    this.state = state;
    this.box = byId("text");
    this.spans = [];
    this.levels = [];
    this.pinned = -1;
    this.newest = -1;
    this.box.addEventListener("pointermove", (event) => this.#point(event));
    this.box.addEventListener("pointerleave", hideTip);
    this.box.addEventListener("click", (event) => this.pin(this.#index(event)));
    this.box.addEventListener("keydown", (event) => this.#key(event));
    this.box.addEventListener("blur", hideTip);
  }

  // The trace whose text is shown.
  get trace() { return this.state.view === "b" ? this.state.b : this.state.a; }

  write() {
    const { prompt, pieces } = this.trace;
    this.spans = pieces.map((piece, i) => {
      const span = document.createElement("span");
      span.textContent = piece;
      span.dataset.i = i;
      return span;
    });
    this.marks = pieces.map((piece, i) => {
      const blank = piece === "" ? " blank" : "", line = /\n$/.test(piece) && piece.trim() === "" ? " line" : "";
      return (i < prompt ? "prompt" : "") + blank + line;
    });
    this.levels = new Array(pieces.length).fill(null);
    this.newest = this.pinned = -1;
    this.box.replaceChildren(...this.spans);
    this.box.scrollTop = 0;
  }

  // Each token's level: "later", "gone", "apart" (beyond the text that both share), or a shade from 0 to LEVELS; a difference from -LEVELS (B) to LEVELS (A).
  paint() {
    const { state, trace } = this, t = Math.min(state.t, trace.n), heads = state.selected();
    const own = trace.holders(heads, t);
    const other = state.view === "diff" ? state.b.holders(heads, t) : null;
    const shared = other ? state.shared : trace.n;
    this.counts = own;
    for (let i = 0; i < trace.n; i++) {
      let level;
      if (i >= t) level = "later";
      else if (other && i >= shared) level = "apart";
      else if (other && own[i] + other[i] === 0) level = "gone";
      else if (other) level = Math.round(Math.max(-1, Math.min(1, (own[i] - other[i]) / heads.length / FULL_DIFFERENCE)) * LEVELS);
      else level = own[i] ? Math.round((own[i] / heads.length) * LEVELS) : "gone";
      if (level !== this.levels[i]) this.#dress(i, level, other !== null);
    }
    this.#markNewest(t - 1);
  }

  #dress(i, level, difference) {
    const span = this.spans[i];
    this.levels[i] = level;
    const word = typeof level === "string" ? ` ${level}` : "";
    span.className = (this.marks[i] + word + (i === this.pinned ? " pinned" : "")).trim();
    if (word) span.style.backgroundColor = "";
    else if (difference && level === 0) span.style.backgroundColor = "#eceef1";
    else if (difference && level < 0) span.style.backgroundColor = css(mix(ORANGE, -level / LEVELS));
    else span.style.backgroundColor = css(mix(this.state.view === "b" ? ORANGE : TOKEN, level / LEVELS));
  }

  #markNewest(i) {
    if (this.spans[this.newest]) this.spans[this.newest].classList.remove("newest");
    this.newest = i;
    if (this.spans[i]) this.spans[i].classList.add("newest");
  }

  // Keeps the newest token in sight; called when time moves.
  follow() {
    const span = this.spans[this.newest];
    if (!span) { this.box.scrollTop = 0; return; }
    const top = span.offsetTop, height = this.box.clientHeight;
    if (top < this.box.scrollTop + 20 || top > this.box.scrollTop + height - 40) this.box.scrollTop = top - height * 0.6;
  }

  repaint() {
    this.levels.fill(null);
    this.paint();
  }

  #index(event) {
    const span = event.target.closest("span[data-i]");
    return span ? Number(span.dataset.i) : -1;
  }

  pin(i) {
    if (this.spans[this.pinned]) this.spans[this.pinned].classList.remove("pinned");
    this.pinned = i === this.pinned ? -1 : i;
    if (this.spans[this.pinned]) this.spans[this.pinned].classList.add("pinned");
  }

  #point(event) {
    const i = this.#index(event);
    if (i < 0) hideTip(); else showTip(this.describe(i), event.clientX, event.clientY);
  }

  #key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const start = this.pinned < 0 ? Math.max(this.newest, 0) : this.pinned + step;
    const i = Math.min(Math.max(start, 0), this.spans.length - 1);
    if (i !== this.pinned) this.pin(i);
    const box = this.spans[i].getBoundingClientRect();
    showTip(this.describe(i), box.left, box.bottom);
  }

  // What the tooltip says of a token.
  describe(i) {
    const { state, trace } = this, heads = state.selected();
    const piece = JSON.stringify(trace.pieces[i]);
    const nodes = [lineOf(bold(piece), `  token ${number(i)}${i < trace.prompt ? " of the prompt" : ""}, id ${trace.ids[i]}`)];
    const shown = state.view === "diff" ? [["A", state.a, "#8ec5ff"], ["B", state.b, "#ffb26b"]] : [["", trace, "#8ec5ff"]];
    const lives = [];
    for (const [name, of, color] of shown) {
      if (name === "B" && i >= state.shared) continue;
      lives.push({ trace: of, token: i, heads, color });
      const { from, counts } = of.life(heads, i);
      const held = i < state.t ? counts[Math.max(of.done(state.t) - from, 0)] : 0;
      const last = counts.findIndex((x) => x === 0);
      const fate = last < 0
        ? `${number(counts[counts.length - 1])} still hold it at the end`
        : `the last lets it go at ${number(of.cuts[from + last - 1])} tokens`;
      const begin = i < state.t ? `held by ${held} of ${heads.length} heads (${percent(held / heads.length, 0)})` : "not written yet";
      nodes.push(lineOf(name ? bold(`${name} `) : "", begin), small(fate));
    }
    nodes.push(sparkline(lives, Math.max(trace.n, 1), state.t));
    return nodes;
  }

  key() {
    const { state } = this, box = byId("key");
    const later = element("span", { class: "later" }, "not written yet");
    const gone = element("span", {}, element("s", { class: "gone" }, "let go"), state.view === "diff" ? "by all heads of both" : "by all heads");
    const apart = state.view === "diff" && state.shared < this.trace.n ? [element("span", { class: "apart" }, "not compared: the texts differ from here on")] : [];
    const ramp = state.view === "diff"
      ? rampKey([...[...ORANGE].reverse(), [236, 238, 241], ...TOKEN], "half of the heads more: B", "A")
      : rampKey(state.view === "b" ? ORANGE : TOKEN, "held by few", "all heads");
    const prompt = element("span", {}, element("u", {}, "prompt"));
    box.replaceChildren(ramp, gone, ...apart, later, prompt);
  }
}
