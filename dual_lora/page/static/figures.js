// The figures: a swept setting, curves with seed bands, score against cost, speed by tokens.
function figuresView() {
  const measured = data.tables.flatMap((table) => table.blocks.filter(blockMeasured).map((block) => ({ table, block })));
  return [h("h1", {}, "Figures"), h("p", { class: "hint" }, "A method has one colour, one symbol and one dash in every figure. Points and lines tell their numbers where the pointer is; the tables hold them all."),
    ratesSection(), h("div", { class: "pairs" }, curvesSection(measured), costSection(measured), speedSection())];
}

function ratesSection() {
  if (!data.swept.length) return null;
  return h("section", {}, h("h2", {}, "Settings that were swept"),
    h("p", { class: "hint" }, "Filled: the value that today's recipe has. Ringed: it is the smallest or largest tried, so a better one may be outside. Bars: one standard deviation, where there are several seeds."),
    h("div", { class: "pairs" }, data.swept.map((figure) => {
      const held = h("div", {});
      const fill = (column) => held.replaceChildren(sweptPlot(figure, column));
      fill(figure.column);
      const columns = Object.keys(figure.columns);
      return h("div", {}, columns.length > 1 ? chooser("column", columns.map((column) => [column, column]), figure.column, fill) : null, held);
    })));
}

// Powers of ten, and their double and fivefold where there is room.
function logTicks(low, high) {
  const all = d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1)
    .flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`))).filter((x) => x >= low * 0.999 && x <= high * 1.001);
  return all.length <= 8 ? all : all.filter((x) => Number(x.toExponential()[0]) === 1);
}

function sweptPlot(figure, column) {
  const { better, decimals } = figure.columns[column];
  const points = figure.points.filter((point) => point.column === column).map((point) => ({ ...point, low: point.y - (point.sd || 0), high: point.y + (point.sd || 0) }));
  const methods = [...new Set(points.map((point) => point.method))];
  const ends = new Set(methods.flatMap((method) => d3.extent(points.filter((point) => point.method === method), (point) => point.x).map((x) => `${method} ${x}`)));
  const chosen = points.filter((point) => point.chosen);
  const ticks = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  return plotted(`${figure.title}: ${column} by ${figure.x}${better === "lower" ? " (lower is better)" : ""}`, {
    width: 560, height: 340,
    x: { type: figure.log ? "log" : "linear", label: figure.x, insetLeft: 12, insetRight: 12 }, y: { label: column, grid: true, nice: true },
    marks: [
      // As a mark: the scale's own labels leave out some that are asked for.
      Plot.axisX(figure.log ? logTicks(ticks[0], ticks[ticks.length - 1]) : ticks, { text: general, label: figure.x }),
      ...methods.map((method) => Plot.lineY(points.filter((point) => point.method === method).sort((a, b) => a.x - b.x), { x: "x", y: "y", stroke: "method", strokeWidth: 1.6, strokeDasharray: look(method).dash })),
      Plot.ruleX(points.filter((point) => point.sd), { x: "x", y1: "low", y2: "high", stroke: "method" }),
      Plot.dot(points, { x: "x", y: "y", stroke: "method", fill: "var(--paper)", symbol: "method", r: 4.5, strokeWidth: 1.6 }),
      Plot.dot(chosen, { x: "x", y: "y", stroke: "method", fill: "method", symbol: "method", r: 5 }),
      Plot.dot(chosen.filter((point) => ends.has(`${point.method} ${point.x}`)), { x: "x", y: "y", stroke: "currentColor", symbol: "circle", r: 10, strokeWidth: 1.4 }),
      Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: (point) => `${point.method}, ${figure.x} ${general(point.x)}\n${column} ${fixed(point.y, decimals)}${point.sd ? ` ± ${fixed(point.sd, decimals)}` : ""}, n = ${point.n}${point.chosen ? "\nin today's recipe" : ""}` })),
    ],
  }, methods);
}

function curvesSection(measured) {
  const places = measured.flatMap(({ table, block }) => {
    const runs = block.rows.filter((row) => row.runs && row.runs.length);
    const tasks = [...new Set(runs.flatMap((row) => row.runs.map((id) => taskOf(data.runs[id]))))];
    return tasks.map((task) => ({ label: `${block.heading.replace(/ \[.*/, "")}${tasks.length > 1 ? `: ${task}` : ""}`, rows: runs, task, table }));
  }).filter(({ rows, task }) => rows.some((row) => row.runs.some((id) => taskOf(data.runs[id]) === task && data.runs[id].curves)));
  if (!places.length) return null;
  const start = Math.max(0, places.findIndex(({ table }) => table.name.startsWith("table_nlg")));
  let place = places[start], name = "train_loss";
  const held = h("div", {});
  const names = () => [...new Set(place.rows.flatMap((row) => row.runs.filter((id) => taskOf(data.runs[id]) === place.task).flatMap((id) => Object.keys(data.runs[id].curves || {}))))];
  function fill() {
    const legal = names();
    if (!legal.includes(name)) name = legal[0];
    const groups = new Map(place.rows.map((row) => [row.method, row.runs.filter((id) => taskOf(data.runs[id]) === place.task)]).filter(([, ids]) => ids.length));
    held.replaceChildren(h("div", { class: "filters" }, chooser("of", places.map((one, k) => [String(k), one.label]), String(places.indexOf(place)), (k) => { place = places[+k]; fill(); }),
      chooser("curve", legal.map((one) => [one, one.replaceAll("_", " ")]), name, (one) => { name = one; fill(); })),
    curvePlot(`${place.label}: ${name.replaceAll("_", " ")}`, groups, name) || "");
  }
  fill();
  return h("section", {}, h("h2", {}, "Training and validation"), h("p", { class: "hint" }, "The line is the mean over seeds, the band their range. At most 60 points of a curve are here; its record holds all."), held);
}

function costSection(measured) {
  const places = measured.filter(({ block }) => block.rows.filter((row) => row.totals && Object.keys(row.totals).length).length > 1 && block.rows.some((row) => row.cells.some((cell) => cell.diff)));
  if (!places.length) return null;
  let { block } = d3.greatest(places, (one) => one.block.rows.filter((row) => row.totals).length), column = focusOf(block), cost = "trainable parameters";
  const held = h("div", {});
  function fill() {
    const costs = [...new Set(block.rows.flatMap((row) => Object.keys(row.totals || {})))];
    if (!costs.includes(cost)) cost = costs[0];
    const shown = block.columns[column];
    const points = block.rows.filter((row) => row.totals && row.totals[cost] && row.cells[column].v !== null).map((row) => {
      const cell = row.cells[column];
      return { method: row.method, x: row.totals[cost], y: cell.v, low: cell.v - (cell.sd || 0), high: cell.v + (cell.sd || 0), text: cell.sd === undefined ? "" : ` ± ${fixed(cell.sd, shown.decimals)}` };
    });
    const methods = [...new Set(points.map((point) => point.method))];
    const wide = d3.max(points, (point) => point.x) > 20 * d3.min(points, (point) => point.x);
    held.replaceChildren(h("div", { class: "filters" }, chooser("of", places.map((one, k) => [String(k), one.block.heading.replace(/ \[.*/, "")]), String(places.findIndex((one) => one.block === block)), (k) => { block = places[+k].block; column = focusOf(block); fill(); }),
      chooser("score", block.columns.map((one, k) => [String(k), one.label]), String(column), (k) => { column = +k; fill(); }), chooser("against", costs.map((one) => [one, one]), cost, (one) => { cost = one; fill(); })),
    plotted(`${shown.label} against ${cost}${shown.better === "lower" ? " (lower is better)" : ""}`, {
      x: { type: wide ? "log" : "linear", label: cost, ticks: wide ? logTicks(d3.min(points, (point) => point.x) / 1.3, d3.max(points, (point) => point.x) * 1.3) : 5, tickFormat: "~s", insetLeft: 14, insetRight: 14 }, y: { label: shown.label, grid: true, nice: true },
      marks: [Plot.lineY(frontier(points, cost === "tokens a second", shown.better), { x: "x", y: "y", curve: "step-after", stroke: "currentColor", strokeOpacity: 0.45, strokeDasharray: "3 3" }),
        Plot.ruleX(points, { x: "x", y1: "low", y2: "high", stroke: "method", strokeWidth: 1.6 }), Plot.dot(points, { x: "x", y: "y", fill: "method", stroke: "method", symbol: "method", r: 5.5 }),
        Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: (point) => `${point.method}\n${shown.label} ${fixed(point.y, shown.decimals)}${point.text}\n${cost} ${general(point.x)}` }))],
    }, methods));
  }
  fill();
  return h("section", {}, h("h2", {}, "Score against cost"), h("p", { class: "hint" }, "Bars: one standard deviation over seeds. Dashes: the frontier, where nothing costs less and scores better. Parameters are those of the adapter, without a head; seconds those of runs alone on their card."), held);
}

// The points that no other beats in both: from the cheapest on, each that scores better than all before it.
function frontier(points, moreIsCheaper, better) {
  const ordered = d3.sort(points, (a, b) => (moreIsCheaper ? b.x - a.x : a.x - b.x) || (better === "lower" ? a.y - b.y : b.y - a.y));
  const found = [];
  for (const point of ordered) {
    const last = found[found.length - 1];
    if (!last || (better === "lower" ? point.y < last.y : point.y > last.y)) found.push(point);
  }
  return found;
}

function speedSection() {
  if (!data.speed) return null;
  const axes = [...new Set(data.speed.points.map((point) => point.axis))];
  const held = h("div", {});
  function fill(axis) {
    const points = d3.sort(data.speed.points.filter((point) => point.axis === axis), (point) => point.x);
    const methods = [...new Set(points.map((point) => point.method))];
    const [out, into, rank, tokens] = points[0].layer;
    const fixedAt = { tokens: `${grouped(out)} × ${grouped(into)}, rank ${rank}`, rank: `${grouped(out)} × ${grouped(into)}, ${grouped(tokens)} tokens`, "layer size": `square, rank ${rank}, ${grouped(tokens)} tokens` }[axis];
    held.replaceChildren(plotted(`Milliseconds of a layer by ${axis} (${fixedAt})`, {
      x: { type: "log", base: 2, label: axis, ticks: [...new Set(points.map((point) => point.x))], tickFormat: (x) => grouped(x) },
      y: { type: "log", label: "ms", grid: true, tickFormat: (y) => ([1, 2, 5].includes(Number(y.toExponential()[0])) ? general(y) : "") },
      marks: [...methods.map((method) => Plot.lineY(points.filter((point) => point.method === method), { x: "x", y: "ms", stroke: "method", strokeDasharray: look(method).dash, strokeWidth: 1.6 })),
        Plot.dot(points, { x: "x", y: "ms", stroke: "method", fill: "method", symbol: "method", r: 4 }),
        Plot.tip(points, Plot.pointer({ x: "x", y: "ms", title: (point) => `${point.method}\n${axis} ${grouped(point.x)}: ${general(point.ms)} ms` }))],
    }, methods));
  }
  fill(axes[0]);
  return h("section", {}, h("h2", {}, "Speed"), h("p", { class: "hint" }, `Forward and backward of one layer, as a CUDA graph; ${data.speed.card}, PyTorch ${data.speed.torch} (results/benchmarks/kernels.json).`),
    h("div", { class: "filters" }, chooser("by", axes.map((axis) => [axis, axis]), axes[0], fill)), held);
}
