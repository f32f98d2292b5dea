// Colours, symbols and dashes of methods, the interval plot of a table's row, and what all figures share.
const KNOWN = ["Dual LoRA", "LoRA", "DoRA", "Full fine-tuning", "LoRA+", "VeRA", "Head only", "Base"];
const SYMBOLS = ["circle", "square", "triangle", "diamond", "times", "plus", "star", "asterisk"];
const OTHERS = ["wye", "cross", "square", "star", "triangle", "diamond", "circle"]; // of names that are none of these
const DASHES = ["none", "6 3", "2 3", "8 3 2 3", "10 4", "4 2", "1 3", "3 6", "12 3 2 3", "5 5", "2 6", "9 2"];

// The same method looks the same in every figure: by its name, others in the order they come.
const looks = new Map();
function look(method) {
  const name = method.split(", ").pop();
  if (!looks.has(name)) {
    const known = KNOWN.indexOf(name);
    const other = looks.size - KNOWN.length; // four colours and seven symbols: 28 pairs before one comes again
    looks.set(
      name,
      known >= 0
        ? { color: `var(--m${known})`, symbol: SYMBOLS[known], dash: DASHES[known] }
        : { color: `var(--m${8 + (other % 4)})`, symbol: OTHERS[other % 7], dash: DASHES[(8 + other) % 12] },
    );
  }
  return looks.get(name);
}
KNOWN.forEach(look);

function symbol(method, size = 12) {
  return svg(
    "svg",
    { width: size, height: size, viewBox: "-6 -6 12 12", "aria-hidden": "true", class: "symbol" },
    shape(method),
  );
}

function shape(method, x = 0, y = 0) {
  const { color, symbol: name } = look(method);
  const hollow = ["times", "plus", "asterisk"].includes(name);
  const drawn = d3.symbol(d3[`symbol${name[0].toUpperCase()}${name.slice(1)}`], 46)();
  return svg("path", {
    d: drawn,
    transform: `translate(${x},${y})`,
    fill: hollow ? "none" : color,
    stroke: color,
    "stroke-width": 1.6,
  });
}

function legend(methods) {
  return h(
    "ul",
    { class: "legend" },
    methods.map((method) =>
      h(
        "li",
        {},
        svg(
          "svg",
          { width: 34, height: 12, viewBox: "0 -6 34 12", "aria-hidden": "true" },
          svg("line", {
            x1: 0,
            x2: 34,
            stroke: look(method).color,
            "stroke-width": 2,
            "stroke-dasharray": look(method).dash,
          }),
        ),
        symbol(method),
        h("span", {}, method),
      ),
    ),
  );
}

// Half the width that interval plots of one column share: all points but those far from the others, and most intervals. What
// is outside ends in an arrow, so that one very wide interval does not hide the others.
function reach(estimates, margin) {
  const ends = estimates
    .flatMap(([mean, low, high]) => [mean, low, high])
    .filter((end) => end !== null && end !== undefined)
    .map(Math.abs);
  if (!ends.length) return margin || 1;
  const usual = d3.median(ends);
  const means = estimates.map(([mean]) => Math.abs(mean)).filter((mean) => mean <= 6 * usual);
  return Math.max(Math.min(d3.max(ends), Math.max(2 * usual, d3.max(means) || 0)), margin || 0, 1e-9) * 1.08;
}

function forest(estimate, half, { margin, better, decimals, label, method }) {
  const width = 168,
    height = 24,
    middle = height / 2;
  const x = d3.scaleLinear([-half, half], [6, width - 6]);
  const text = estimate ? interval(estimate, decimals + 1) : "no difference";
  const parts = [];
  if (margin)
    parts.push(
      svg("rect", { x: x(-margin), width: x(margin) - x(-margin), y: 2, height: height - 4, class: "margin" }),
    );
  parts.push(svg("line", { x1: x(0), x2: x(0), y1: 0, y2: height, class: "zero" }));
  if (estimate) {
    const [mean, low, high] = estimate;
    const inside = (value) => Math.max(-half, Math.min(half, value));
    const arrow = (at, turn) => svg("path", { d: `M${x(at)} ${middle} l${-5 * turn} -4 v8 z`, class: "interval-end" });
    if (low !== null) {
      parts.push(svg("line", { x1: x(inside(low)), x2: x(inside(high)), y1: middle, y2: middle, class: "interval" }));
      parts.push(
        low < -half
          ? arrow(-half, -1)
          : svg("line", { x1: x(low), x2: x(low), y1: middle - 4, y2: middle + 4, class: "interval" }),
      );
      parts.push(
        high > half
          ? arrow(half, 1)
          : svg("line", { x1: x(high), x2: x(high), y1: middle - 4, y2: middle + 4, class: "interval" }),
      );
    }
    parts.push(
      Math.abs(mean) <= half ? shape(method, x(mean), middle) : arrow(Math.sign(mean) * half, Math.sign(mean)),
    );
  }
  const side = better === "lower" ? "lower is better" : "higher is better";
  return svg(
    "svg",
    {
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      class: "forest",
      "aria-label": `${label}: ${text} (${side})`,
    },
    parts,
  );
}

function forestScale(half, better, decimals) {
  return h(
    "span",
    { class: "forest-scale", "aria-hidden": "true" },
    h("span", {}, signed(-half, decimals)),
    h("span", {}, better === "lower" ? "← better" : "better →"),
    h("span", {}, signed(half, decimals)),
  );
}

function scales(methods) {
  return {
    color: { type: "ordinal", domain: methods, range: methods.map((method) => look(method).color) },
    symbol: { domain: methods, range: methods.map((method) => look(method).symbol) },
  };
}

// A Plot with what all share: size, type, a text for who does not see it. Where it fails, the page says so and goes on.
function plotted(caption, options, methods = []) {
  try {
    const figure = Plot.plot({
      width: 600,
      height: 350,
      marginTop: 30,
      marginLeft: 58,
      marginBottom: 44,
      ariaLabel: caption,
      ...scales(methods),
      ...options,
      style: { background: "none", fontFamily: "inherit", fontSize: "13px", overflow: "visible", maxWidth: "100%" },
    });
    figure.setAttribute("role", "img");
    for (const part of figure.querySelectorAll("g[aria-label]")) part.removeAttribute("aria-label"); // "line" tells nobody anything
    return h(
      "figure",
      { class: "plot" },
      h("figcaption", {}, caption),
      methods.length ? legend(methods) : null,
      figure,
    );
  } catch (error) {
    console.error(error);
    return h("p", { class: "hint" }, `${caption}: cannot be drawn (${error.message})`);
  }
}

// One line per method over the steps: the mean over runs that stopped at the same steps, the range as a band.
function curvePlot(caption, groups, name, { smaller } = {}) {
  const lines = [],
    bands = [];
  for (const [method, ids] of groups) {
    const bySteps = d3.group(
      ids.map((id) => data.runs[id]?.curves?.[name]).filter(Boolean),
      ([steps]) => String(steps),
    );
    for (const [place, own] of bySteps) {
      own[0][0].forEach((step, k) => {
        const values = own
          .map(([, values]) => values[k])
          .filter((value) => value !== null && value !== undefined);
        if (!values.length) return;
        lines.push({ method, group: `${method} ${place}`, step, value: d3.mean(values), runs: values.length });
        if (values.length > 1)
          bands.push({ method, group: `${method} ${place}`, step, low: d3.min(values), high: d3.max(values) });
      });
    }
  }
  const methods = [...groups.keys()].filter((method) => lines.some((line) => line.method === method));
  if (!lines.length) return null;
  if (lines.every((line) => line.step === lines[0].step)) {
    return h(
      "div",
      { class: "plot" },
      h("p", { class: "caption" }, `${caption}, at step ${grouped(lines[0].step)} alone`),
      facts(lines.map((line) => [line.method, general(line.value)])),
    );
  }
  const few =
    d3.max(
      d3.rollups(
        lines,
        (part) => part.length,
        (line) => line.group,
      ),
      (part) => part[1],
    ) <= 12;
  return plotted(
    caption,
    {
      x: { label: "step", ticks: 6, tickFormat: (step) => (Number.isInteger(step) ? grouped(step) : "") },
      y: { label: name.replaceAll("_", " "), grid: true, nice: true },
      ...(smaller ? { width: 420, height: 260 } : {}),
      marks: [
        Plot.areaY(bands, { x: "step", y1: "low", y2: "high", z: "group", fill: "method", fillOpacity: 0.15 }),
        ...methods.map((method) =>
          Plot.lineY(
            lines.filter((line) => line.method === method),
            {
              x: "step",
              y: "value",
              z: "group",
              stroke: "method",
              strokeWidth: 1.8,
              strokeDasharray: look(method).dash,
            },
          ),
        ),
        few
          ? Plot.dot(lines, { x: "step", y: "value", fill: "method", stroke: "method", symbol: "method", r: 3 })
          : null,
        Plot.tip(
          lines,
          Plot.pointer({
            x: "step",
            y: "value",
            title: (line) =>
              `${line.method}\nstep ${grouped(line.step)}: ${general(line.value)}${line.runs > 1 ? `, mean of ${line.runs} runs` : ""}`,
          }),
        ),
      ],
    },
    methods,
  );
}
