// ---- A canvas with axes over the tokens of the chain ----

class Plot {
  constructor(id, height, label) {
    this.box = byId(id);
    this.height = height;
    this.margin = { left: 58, right: 10, top: 8, bottom: 24 };
    this.canvas = element("canvas", { role: "img", "aria-label": label });
    this.cursor = element("div", { class: "cursor", "aria-hidden": "true" });
    this.box.replaceChildren(this.canvas, this.cursor);
    this.hover = null; // (t, y in pixels of the inner part) => nodes of the tooltip, or null
    this.click = null; // the same, when clicked
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", hideTip);
    this.canvas.addEventListener("click", (event) => {
      const at = this.#at(event);
      if (at && this.click) this.click(at.t, at.y);
    });
  }

  // Sets the size and clears; xMax: tokens; [yMin, yMax]: of the values, none for a plot that draws its own rows.
  begin(xMax, yMin = 0, yMax = 1) {
    const ratio = window.devicePixelRatio || 1;
    this.width = Math.max(this.box.clientWidth, 200);
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.canvas.style.height = `${this.height}px`;
    this.ink = this.canvas.getContext("2d");
    this.ink.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.ink.clearRect(0, 0, this.width, this.height);
    this.xMax = Math.max(xMax, 1);
    [this.yMin, this.yMax] = [yMin, yMax > yMin ? yMax : yMin + 1];
    this.innerWidth = this.width - this.margin.left - this.margin.right;
    this.innerHeight = this.height - this.margin.top - this.margin.bottom;
  }

  x(t) { return this.margin.left + (t / this.xMax) * this.innerWidth; }
  y(value) { return this.margin.top + (1 - (value - this.yMin) / (this.yMax - this.yMin)) * this.innerHeight; }

  moveTo(t) {
    if (!this.innerHeight) return;
    Object.assign(this.cursor.style, {
      left: `${this.x(t)}px`, top: `${this.margin.top}px`, height: `${this.innerHeight}px`,
    });
  }

  axes(yFormat, yTitle) {
    const ink = this.ink;
    ink.font = "11.5px system-ui, 'DejaVu Sans', sans-serif";
    ink.fillStyle = styled("soft");
    ink.strokeStyle = styled("line");
    ink.lineWidth = 1;
    if (yFormat) {
      ink.textAlign = "right";
      ink.textBaseline = "middle";
      for (const value of ticks(this.yMin, this.yMax, 4)) {
        const y = Math.round(this.y(value)) + 0.5;
        ink.beginPath();
        ink.moveTo(this.margin.left, y);
        ink.lineTo(this.width - this.margin.right, y);
        ink.stroke();
        ink.fillText(yFormat(value), this.margin.left - 6, y);
      }
    }
    ink.textAlign = "center";
    ink.textBaseline = "top";
    const bottom = this.height - this.margin.bottom;
    for (const t of ticks(0, this.xMax, this.width > 500 ? 7 : 4)) {
      if (this.x(t) < this.width - this.margin.right - 60) ink.fillText(number(t), this.x(t), bottom + 6);
    }
    ink.textAlign = "right";
    ink.fillText("tokens", this.width - this.margin.right, bottom + 6);
    if (yTitle) {
      ink.save();
      ink.translate(11, this.margin.top + this.innerHeight / 2);
      ink.rotate(-Math.PI / 2);
      ink.textAlign = "center";
      ink.textBaseline = "middle";
      ink.fillText(yTitle, 0, 0);
      ink.restore();
    }
  }

  // points: [t, value]...; what is closer than half a pixel is left out.
  line(points, color, width = 1, dash = []) {
    const ink = this.ink;
    ink.setLineDash(dash);
    ink.strokeStyle = color;
    ink.lineWidth = width;
    ink.lineJoin = "round";
    ink.beginPath();
    let started = false, lastX = 0, lastY = 0;
    for (const [t, value] of points) {
      if (!Number.isFinite(value)) { started = false; continue; }
      const x = this.x(t), y = this.y(value);
      if (!started) ink.moveTo(x, y);
      else if (Math.abs(x - lastX) < 0.5 && Math.abs(y - lastY) < 0.5) continue;
      else ink.lineTo(x, y);
      [started, lastX, lastY] = [true, x, y];
    }
    ink.stroke();
    ink.setLineDash([]);
  }

  // Between two lines.
  band(points, color) {
    const ink = this.ink, good = points.filter(([, low, high]) => Number.isFinite(low) && Number.isFinite(high));
    if (good.length < 1) return;
    ink.save();
    ink.beginPath();
    ink.rect(this.margin.left, this.margin.top, this.innerWidth, this.innerHeight);
    ink.clip();
    ink.fillStyle = color;
    ink.beginPath();
    good.forEach(([t, low], i) => (i ? ink.lineTo(this.x(t), this.y(low)) : ink.moveTo(this.x(t), this.y(low))));
    for (const [t, , high] of [...good].reverse()) ink.lineTo(this.x(t), this.y(high));
    ink.closePath();
    ink.fill();
    ink.restore();
  }

  #at(event) {
    if (!this.innerWidth) return null;
    const box = this.canvas.getBoundingClientRect();
    const t = Math.round(((event.clientX - box.left - this.margin.left) / this.innerWidth) * this.xMax);
    const y = event.clientY - box.top - this.margin.top;
    return t < 0 || t > this.xMax || y < 0 || y >= this.innerHeight ? null : { t, y };
  }

  #point(event) {
    const at = this.#at(event), nodes = at && this.hover ? this.hover(at.t, at.y) : null;
    if (nodes) showTip(nodes, event.clientX, event.clientY); else hideTip();
  }
}

// About `count` round numbers between two others.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= rough);
  const result = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-9; x += step) result.push(Math.abs(x) < step * 1e-9 ? 0 : x);
  return result;
}
