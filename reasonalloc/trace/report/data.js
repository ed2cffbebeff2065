// ---- The data, and what it says about any moment ----

const TYPES = {
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array, float32: Float32Array,
};

function decode([type, text]) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new TYPES[type](bytes.buffer);
}

// Number of entries of an ascending array that are at most x.
function upTo(array, x) {
  let low = 0, high = array.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (array[middle] <= x) low = middle + 1; else high = middle;
  }
  return low;
}

// One trace: n tokens, a head is layer * heads + its number there. "At t" is when t tokens have been seen and cut.
class Trace {
  constructor(raw) {
    const { slots, ...rest } = raw; // slots is a method here
    Object.assign(this, rest);
    for (const name of ["ids", "cuts", "gone", "shown", "budgets", "lost", "quantiles"]) this[name] = decode(raw[name]);
    this.n = raw.tokens;
    this.count = raw.layers * raw.heads;
    this.shownAt = Array.from(this.shown, (cut) => this.cuts[cut]);
    this.#carryBudgets();
    this.#countEvictions();
  }

  // A layer with nothing to cut keeps the budgets that it had.
  #carryBudgets() {
    for (let i = this.count; i < this.budgets.length; i++) {
      if (this.budgets[i] < 0) this.budgets[i] = this.budgets[i - this.count];
    }
  }

  // went[head * (cuts + 1) + c]: slots that a head has let go after c cuts.
  #countEvictions() {
    const width = this.cuts.length + 1;
    this.went = new Int32Array(this.count * width);
    for (let head = 0; head < this.count; head++) {
      for (let i = head * this.n; i < (head + 1) * this.n; i++) {
        if (this.gone[i]) this.went[head * width + this.gone[i]]++;
      }
      for (let c = 1; c < width; c++) this.went[head * width + c] += this.went[head * width + c - 1];
    }
  }

  done(t) { return upTo(this.cuts, t); }

  slots(head, t) {
    const seen = Math.min(t, this.n);
    return seen - this.went[head * (this.cuts.length + 1) + this.done(seen)];
  }

  totalSlots(t) {
    let sum = 0;
    for (let head = 0; head < this.count; head++) sum += this.slots(head, t);
    return sum;
  }

  holds(head, token, t) {
    if (token >= t || token >= this.n) return false;
    const cut = this.gone[head * this.n + token];
    return cut === 0 || this.cuts[cut - 1] > t;
  }

  // How many of these heads hold each token at t.
  holders(heads, t) {
    const counts = new Uint16Array(this.n);
    const seen = Math.min(t, this.n), done = this.done(seen);
    for (const head of heads) {
      const row = this.gone.subarray(head * this.n, head * this.n + seen);
      for (let i = 0; i < seen; i++) if (row[i] === 0 || row[i] > done) counts[i]++;
    }
    return counts;
  }

  // How many of these heads hold one token after each cut, from the moment it was seen.
  life(heads, token) {
    const from = upTo(this.cuts, token), counts = [heads.length];
    for (let c = from; c < this.cuts.length; c++) {
      let held = 0;
      for (const head of heads) {
        const cut = this.gone[head * this.n + token];
        if (cut === 0 || cut > c + 1) held++;
      }
      counts.push(held);
    }
    return { from, counts };
  }

  // A head's budget at t, or -1 before its layer was first cut.
  budget(head, t) {
    const cut = upTo(this.shownAt, t) - 1;
    return cut < 0 ? -1 : this.budgets[cut * this.count + head];
  }

  // A head by its layer's number in the model.
  label(head) {
    return `layer ${this.layerNumbers[Math.floor(head / this.heads)]}, head ${head % this.heads}`;
  }
}

// Slots (a token in a head) that both traces hold at t, and those that one alone holds.
function overlap(a, b, heads, t) {
  const result = { both: 0, a: 0, b: 0 };
  const doneA = a.done(t), doneB = b.done(t), seen = Math.min(t, a.n, b.n);
  for (const head of heads) {
    for (let i = 0; i < seen; i++) {
      const goneA = a.gone[head * a.n + i], goneB = b.gone[head * b.n + i];
      const inA = goneA === 0 || goneA > doneA, inB = goneB === 0 || goneB > doneB;
      if (inA && inB) result.both++; else if (inA) result.a++; else if (inB) result.b++;
    }
  }
  return result;
}

function sameShape(a, b) { return a.layers === b.layers && a.heads === b.heads; }

// Length of the text that two traces share.
function sharedText(a, b) {
  let i = 0;
  while (i < a.n && i < b.n && a.ids[i] === b.ids[i]) i++;
  return i;
}
