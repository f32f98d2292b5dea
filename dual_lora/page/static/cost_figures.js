// Score against cost with its frontier, and the speed of a layer.
function costSection(measured) {
  const places = measured.filter(
    ({ block }) =>
      block.rows.filter((row) => row.totals && Object.keys(row.totals).length).length > 1 &&
      block.rows.some((row) => row.cells.some((cell) => cell.diff)),
  );
  if (!places.length) return null;
  const shown = mostDone(places);
  let cost = "trainable parameters";
  const held = h("div", {});
  function fill() {
    const { block, column } = shown;
    const costs = [...new Set(block.rows.flatMap((row) => Object.keys(row.totals || {})))];
    if (!costs.includes(cost)) cost = costs[0];
    const score = block.columns[column];
    const points = block.rows
      .filter((row) => row.totals && row.totals[cost] && row.cells[column].v !== null)
      .map((row) => {
        const cell = row.cells[column];
        return {
          method: withoutSettings(row.method),
          row: row.method,
          x: row.totals[cost],
          y: cell.v,
          low: cell.v - (cell.sd || 0),
          high: cell.v + (cell.sd || 0),
          text: cell.sd === undefined ? "" : ` ± ${fixed(cell.sd, score.decimals)}`,
        };
      });
    const methods = [...new Set(points.map((point) => point.method))];
    const wide = d3.max(points, (point) => point.x) > 20 * d3.min(points, (point) => point.x);
    held.replaceChildren(
      h(
        "div",
        { class: "filters" },
        blockAndScore(places, shown, fill),
        chooser(
          "against",
          costs.map((one) => [one, one]),
          cost,
          (one) => {
            cost = one;
            fill();
          },
        ),
      ),
      plotted(
        `${score.label} against ${cost}${score.better === "lower" ? " (lower is better)" : ""}`,
        {
          x: {
            type: wide ? "log" : "linear",
            label: cost,
            ticks: wide
              ? logTicks(d3.min(points, (point) => point.x) / 1.3, d3.max(points, (point) => point.x) * 1.3)
              : 5,
            tickFormat: "~s",
            insetLeft: 14,
            insetRight: 14,
          },
          y: { label: score.label, grid: true, nice: true },
          marks: [
            Plot.lineY(frontier(points, cost === "tokens a second", score.better), {
              x: "x",
              y: "y",
              curve: "step-after",
              stroke: "currentColor",
              strokeOpacity: 0.45,
              strokeDasharray: "3 3",
            }),
            ...methods.map((method) =>
              Plot.lineY(
                d3.sort(
                  points.filter((point) => point.method === method),
                  (point) => point.x,
                ),
                { x: "x", y: "y", stroke: "method", strokeDasharray: look(method).dash, strokeWidth: 1.6 },
              ),
            ),
            Plot.ruleX(points, { x: "x", y1: "low", y2: "high", stroke: "method", strokeWidth: 1.6 }),
            Plot.dot(points, { x: "x", y: "y", fill: "method", stroke: "method", symbol: "method", r: 5.5 }),
            Plot.tip(
              points,
              Plot.pointer({
                x: "x",
                y: "y",
                title: (point) =>
                  `${point.row}\n${score.label} ${fixed(point.y, score.decimals)}${point.text}\n${cost} ${general(point.x)}`,
              }),
            ),
          ],
        },
        methods,
      ),
    );
  }
  fill();
  return h(
    "section",
    {},
    h("h2", {}, "Score against cost"),
    h(
      "p",
      { class: "hint" },
      "Bars: one standard deviation over seeds. A method of several ranks is a line. Dashes: the frontier, where nothing costs less and scores better. Parameters are those of the adapter, without a head; seconds those of runs alone on their card.",
    ),
    held,
  );
}

// What a row is called without the settings that its sweep varies.
const withoutSettings = (method) => method.replace(/ \([^()]*=[^()]*\)$/, "");

// The points that no other beats in both: from the cheapest on, each that scores better than all before it.
function frontier(points, moreIsCheaper, better) {
  const ordered = d3.sort(
    points,
    (a, b) => (moreIsCheaper ? b.x - a.x : a.x - b.x) || (better === "lower" ? a.y - b.y : b.y - a.y),
  );
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
    const points = d3.sort(
      data.speed.points.filter((point) => point.axis === axis),
      (point) => point.x,
    );
    const methods = [...new Set(points.map((point) => point.method))];
    const [out, into, rank, tokens] = points[0].layer;
    const fixedAt = {
      tokens: `${grouped(out)} × ${grouped(into)}, rank ${rank}`,
      rank: `${grouped(out)} × ${grouped(into)}, ${grouped(tokens)} tokens`,
      "layer size": `square, rank ${rank}, ${grouped(tokens)} tokens`,
    }[axis];
    held.replaceChildren(
      plotted(
        `Milliseconds of a layer by ${axis} (${fixedAt})`,
        {
          x: {
            type: "log",
            base: 2,
            label: axis,
            ticks: [...new Set(points.map((point) => point.x))],
            tickFormat: (x) => grouped(x),
          },
          y: {
            type: "log",
            label: "ms",
            grid: true,
            tickFormat: (y) => ([1, 2, 5].includes(Number(y.toExponential()[0])) ? general(y) : ""),
          },
          marks: [
            ...methods.map((method) =>
              Plot.lineY(
                points.filter((point) => point.method === method),
                { x: "x", y: "ms", stroke: "method", strokeDasharray: look(method).dash, strokeWidth: 1.6 },
              ),
            ),
            Plot.dot(points, { x: "x", y: "ms", stroke: "method", fill: "method", symbol: "method", r: 4 }),
            Plot.tip(
              points,
              Plot.pointer({
                x: "x",
                y: "ms",
                title: (point) => `${point.method}\n${axis} ${grouped(point.x)}: ${general(point.ms)} ms`,
              }),
            ),
          ],
        },
        methods,
      ),
    );
  }
  fill(axes[0]);
  return h(
    "section",
    {},
    h("h2", {}, "Speed"),
    h(
      "p",
      { class: "hint" },
      `Forward and backward of one layer, as a CUDA graph; ${data.speed.card}, PyTorch ${data.speed.torch} (results/benchmarks/kernels.json).`,
    ),
    h(
      "div",
      { class: "filters" },
      chooser(
        "by",
        axes.map((axis) => [axis, axis]),
        axes[0],
        fill,
      ),
    ),
    held,
  );
}
