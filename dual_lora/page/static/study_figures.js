// Differences from the reference, what diagnostics saw inside the update, and figures that wait for their runs.
function differencesSection(measured) {
  const places = measured.filter(({ block }) => block.rows.some((row) => row.cells.some((cell) => cell.diff)));
  if (!places.length) return null;
  const shown = mostDone(places);
  const held = h("div", {});
  function fill() {
    const { block, column } = shown;
    const { label, better, decimals } = block.columns[column];
    const margin = block.endpoint && block.endpoint.column === label ? block.endpoint.margin : null;
    const points = block.rows
      .filter((row) => row.cells[column].diff)
      .map((row) => ({
        method: row.method,
        estimate: row.cells[column].diff,
        x: row.cells[column].diff[0],
        low: row.cells[column].diff[1],
        high: row.cells[column].diff[2],
      }));
    const methods = points.map((point) => point.method);
    held.replaceChildren(
      h(
        "div",
        { class: "filters" },
        blockAndScore(places, shown, fill, (block, k) => block.rows.some((row) => row.cells[k].diff)),
      ),
      plotted(
        `${label}: each method minus ${block.reference}`,
        {
          height: 90 + 34 * methods.length,
          marginLeft: 16 + 7 * d3.max(methods, (method) => method.length),
          x: { label: `${label} minus ${block.reference} (${better} is better)`, grid: true, nice: true },
          y: { domain: methods, label: null },
          marks: [
            margin ? Plot.rectX([margin], { x1: (m) => -m, x2: (m) => m, fill: "currentColor", fillOpacity: 0.1 }) : null,
            Plot.ruleX([0], { stroke: "currentColor", strokeOpacity: 0.6 }),
            Plot.ruleY(
              points.filter((point) => point.low !== null),
              { y: "method", x1: "low", x2: "high", stroke: "method", strokeWidth: 2 },
            ),
            Plot.dot(points, { x: "x", y: "method", fill: "method", stroke: "method", symbol: "method", r: 5 }),
            Plot.tip(
              points,
              Plot.pointer({
                x: "x",
                y: "method",
                title: (point) =>
                  `${point.method}\n${interval(point.estimate, decimals + 1)}, ${plural(point.estimate[3], "pair")}`,
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
    h("h2", {}, "Differences from the reference"),
    h("p", { class: "hint" }, "Bars: 95 % intervals, paired by seed. Grey: the margin within which methods count as equal."),
    held,
  );
}

function insideSection() {
  if (!data.inside.length) return null;
  return h(
    "section",
    {},
    h("h2", {}, "Inside the update"),
    h(
      "p",
      { class: "hint" },
      "Of runs with diagnostics=on: means over runs, bands their range. By step over all adapted layers, by layer at the end.",
    ),
    data.inside.map((figure) => [h("h3", {}, figure.title), figure.panels.map(panelPlot)]),
  );
}

function panelPlot({ x, y, log, lines }) {
  const points = Object.entries(lines).flatMap(([method, own]) =>
    own.map(([at, mean, low, high]) => ({ method, x: at, y: mean, low, high })),
  );
  const methods = Object.keys(lines);
  const logarithmic = log && points.every((point) => point.low > 0);
  return plotted(
    `${y} by ${x}`,
    {
      width: 420,
      height: 260,
      x: { label: x, ticks: 6, tickFormat: (at) => (Number.isInteger(at) ? grouped(at) : "") },
      y: { label: y, grid: true, nice: true, type: logarithmic ? "log" : "linear", tickFormat: logarithmic ? "~g" : undefined },
      marks: [
        Plot.areaY(points, { x: "x", y1: "low", y2: "high", z: "method", fill: "method", fillOpacity: 0.15 }),
        ...methods.map((method) =>
          Plot.lineY(
            points.filter((point) => point.method === method),
            { x: "x", y: "y", stroke: "method", strokeWidth: 1.8, strokeDasharray: look(method).dash },
          ),
        ),
        Plot.dot(points, { x: "x", y: "y", fill: "method", stroke: "method", symbol: "method", r: 3 }),
        Plot.tip(
          points,
          Plot.pointer({ x: "x", y: "y", title: (point) => `${point.method}\n${x} ${grouped(point.x)}: ${general(point.y)}` }),
        ),
      ],
    },
    methods,
  );
}

function missingSection() {
  if (!data.missing.length) return null;
  return h(
    "section",
    {},
    h("h2", {}, "Not run"),
    h("p", { class: "hint" }, "Figures that no record gives a point, and the commands that would."),
    data.missing.map(({ title, kinds, commands: texts }) =>
      h(
        "details",
        { class: "waiting" },
        h("summary", {}, title),
        h("p", {}, kinds.join("; ")),
        commands(texts),
      ),
    ),
  );
}
