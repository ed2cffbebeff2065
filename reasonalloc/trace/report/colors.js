// ---- Colours: light to dark for amounts, two hues for differences; dark text stays readable on those of tokens ----

const GRAY = "#6b7684";
const AMOUNT = [[247, 251, 255], [198, 219, 239], [107, 174, 214], [49, 120, 180], [8, 48, 107]];
const TOKEN = [[232, 242, 251], [190, 218, 242], [140, 192, 232], [94, 166, 222]];
const ORANGE = [[253, 240, 228], [250, 214, 176], [244, 178, 116], [232, 143, 66]];
const DIFFERENCE = [[179, 88, 6], [241, 163, 64], [246, 246, 246], [103, 155, 209], [31, 95, 168]];
const DEPTH = [[68, 57, 131], [38, 130, 142], [53, 183, 121], [160, 200, 50]];

// The colour at x, 0 to 1, on a ramp of evenly spaced stops.
function mix(ramp, x) {
  const place = Math.min(Math.max(x, 0), 1) * (ramp.length - 1);
  const i = Math.min(Math.floor(place), ramp.length - 2), part = place - i;
  return ramp[i].map((from, c) => Math.round(from + (ramp[i + 1][c] - from) * part));
}

function css([r, g, b], alpha = 1) { return alpha === 1 ? `rgb(${r}, ${g}, ${b})` : `rgba(${r}, ${g}, ${b}, ${alpha})`; }

function gradient(ramp) { return `linear-gradient(to right, ${ramp.map((x) => css(x)).join(", ")})`; }

// A colour of the page's style, which follows the reader's light or dark scheme.
function styled(name) { return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(); }

// Those of the two traces, by their letter, and a colour "#rrggbb" that what lies below shows through.
const colorOf = (letter) => styled(letter.toLowerCase());
function faded(color, alpha) { return css([1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)), alpha); }

// ---- Small helpers for the page ----

const byId = (id) => document.getElementById(id);
const number = (x) => x.toLocaleString("en-US");
const percent = (x, digits = 1) => `${(100 * x).toFixed(digits)}%`;

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function rampKey(ramp, low, high) {
  return element("span", {}, low, element("i", { class: "ramp", style: { background: gradient(ramp) } }), high);
}

function swatchKey(color, text) {
  return element("span", {}, element("i", { class: "swatch", style: { background: color } }), text);
}

// Buttons of which one is chosen; arrow keys go from one to the next.
function choice(id, options, chosen, onChange) {
  const box = byId(id);
  box.replaceChildren();
  box.hidden = options.length < 2;
  const buttons = options.map(([value, text]) => {
    const on = value === chosen;
    const button = element("button", { type: "button", role: "radio", "aria-checked": on, tabindex: on ? 0 : -1, "data-value": value }, text);
    button.addEventListener("click", () => {
      for (const other of buttons) {
        other.setAttribute("aria-checked", other === button);
        other.tabIndex = other === button ? 0 : -1;
      }
      onChange(value);
    });
    return button;
  });
  box.append(...buttons);
  box.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
  };
}
