// ---- The tooltip ----

function showTip(nodes, x, y) {
  const tip = byId("tip");
  tip.replaceChildren(...nodes);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > window.innerWidth ? x - box.width - 14 : x + 14;
  const top = y + 18 + box.height > window.innerHeight ? y - box.height - 12 : y + 18;
  Object.assign(tip.style, { left: `${Math.max(4, left)}px`, top: `${Math.max(4, top)}px` });
}

function hideTip() { byId("tip").hidden = true; }

function lineOf(...parts) { return element("div", {}, ...parts); }
function bold(text) { return element("b", {}, text); }
function small(text) { return element("div", { class: "small" }, text); }

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// Heads that hold a token, from when it was seen to the end, as steps; a line for each trace.
function sparkline(lives, tokens, t) {
  const width = 220, height = 44, picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const x = (token) => (token / tokens) * width, y = (share) => height - 2 - share * (height - 4);
  picture.append(svg("line", { x1: 0, x2: width, y1: y(0), y2: y(0), stroke: "#4a5563" }));
  for (const { trace, token, heads, color } of lives) {
    const { from, counts } = trace.life(heads, token);
    let path = `M${x(token)},${y(1)}`;
    counts.forEach((held, i) => {
      const end = from + i < trace.cuts.length ? trace.cuts[from + i] : trace.n;
      path += ` V${y(held / heads.length)} H${x(end)}`;
    });
    picture.append(svg("path", { d: path, fill: "none", stroke: color, "stroke-width": 1.6 }));
  }
  picture.append(svg("line", { x1: x(t), x2: x(t), y1: 0, y2: height, stroke: "#ff6b6b" }));
  return picture;
}
