// The figures: swept settings, differences, curves with seed bands, score against cost, inside the update, speed by tokens.
function figuresView() {
  const measured = data.tables.flatMap((table) =>
    table.blocks.filter(blockMeasured).map((block) => ({ table, block })),
  );
  return [
    h("h1", {}, "Figures"),
    h(
      "p",
      { class: "hint" },
      "A method has one colour, one symbol and one dash in every figure. Points and lines tell their numbers where the pointer is; the tables hold them all.",
    ),
    h(
      "div",
      { class: "pairs" },
      differencesSection(measured),
      curvesSection(measured),
      costSection(measured),
      insideSection(),
      speedSection(),
    ),
    ratesSection(),
    missingSection(),
  ];
}

// Which block a figure shows first, and which of its scores.
function mostDone(places) {
  const { block } = d3.greatest(places, (one) => one.block.done);
  return { block, column: focusOf(block) };
}

// The choosers of both, which change `shown`; of the scores only those that `has` something to show.
function blockAndScore(places, shown, refill, has = () => true) {
  const change = (values) => {
    Object.assign(shown, values);
    refill();
  };
  return [
    chooser(
      "of",
      places.map((one, k) => [String(k), plainHeading(one.block)]),
      String(places.findIndex((one) => one.block === shown.block)),
      (k) => change({ block: places[+k].block, column: focusOf(places[+k].block) }),
    ),
    chooser(
      "score",
      shown.block.columns.map((one, k) => [String(k), one.label]).filter(([k]) => has(shown.block, +k)),
      String(shown.column),
      (k) => change({ column: +k }),
    ),
  ];
}

// A block's heading without the commits that made its runs.
const plainHeading = (block) => block.heading.replace(/ \[.*/, "");

function ratesSection() {
  if (!data.swept.length) return null;
  return h(
    "section",
    {},
    h("h2", {}, "Settings that were swept"),
    h(
      "p",
      { class: "hint" },
      "Filled: the best of its grid, which is what was chosen. Ringed: it is the smallest or largest tried, so a better one may be outside. Bars: one standard deviation, where there are several seeds. An arrow: far outside, as after a training that diverged. An average chooses nothing.",
    ),
    h(
      "div",
      { class: "pairs" },
      data.swept.map((figure) => {
        const held = h("div", {});
        const fill = (column) => held.replaceChildren(sweptPlot(figure, column));
        fill(figure.column);
        const columns = Object.keys(figure.columns);
        return h(
          "div",
          {},
          columns.length > 1
            ? chooser(
                "column",
                columns.map((column) => [column, column]),
                figure.column,
                fill,
              )
            : null,
          held,
        );
      }),
    ),
  );
}

// Powers of ten, and their double and fivefold where there is room.
function logTicks(low, high) {
  const all = d3
    .range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1)
    .flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`)))
    .filter((x) => x >= low * 0.999 && x <= high * 1.001);
  return all.length <= 8 ? all : all.filter((x) => Number(x.toExponential()[0]) === 1);
}

// Where an axis ends so that rates which diverged do not hide the others: null if none is far off.
function farEnd(values, better) {
  const best = better === "lower" ? d3.min(values) : d3.max(values);
  const away = values.map((value) => Math.abs(value - best));
  const far = 4 * d3.median(away);
  return far > 0 && d3.max(away) > 2 * far ? best + (better === "lower" ? far : -far) : null;
}

function domainTo(limit, points, better) {
  if (limit === null) return {};
  const best = (better === "lower" ? d3.min : d3.max)(points, (point) => point.y);
  const room = best + 0.06 * (best - limit);
  return { domain: better === "lower" ? [room, limit] : [limit, room] };
}

function sweptPlot(figure, column) {
  const { better, decimals } = figure.columns[column];
  const own = figure.points.filter((point) => point.column === column);
  const limit = farEnd(
    own.map((point) => point.y),
    better,
  );
  const outside = (point) => limit !== null && (better === "lower" ? point.y > limit : point.y < limit);
  const points = own.map((point) => ({
    ...point,
    at: outside(point) ? limit : point.y, // at the edge, as an arrow
    low: point.y - (point.sd || 0),
    high: point.y + (point.sd || 0),
  }));
  const methods = [...new Set(points.map((point) => point.method))];
  const ends = new Set(
    methods.flatMap((method) =>
      d3
        .extent(
          points.filter((point) => point.method === method),
          (point) => point.x,
        )
        .map((x) => `${method} ${x}`),
    ),
  );
  const chosen = points.filter((point) => point.chosen);
  const ticks = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  return plotted(
    `${figure.title}: ${column} by ${figure.x}${better === "lower" ? " (lower is better)" : ""}${points.some(outside) ? `; ${plural(points.filter(outside).length, "point")} outside` : ""}`,
    {
      width: 560,
      height: 340,
      x: { type: figure.log ? "log" : "linear", label: figure.x, insetLeft: 12, insetRight: 12 },
      y: { label: column, grid: true, nice: true, ...domainTo(limit, own, better) },
      marks: [
        // As a mark: the scale's own labels leave out some that are asked for.
        Plot.axisX(figure.log ? logTicks(ticks[0], ticks[ticks.length - 1]) : ticks, {
          text: general,
          label: figure.x,
        }),
        ...methods.map((method) =>
          Plot.lineY(
            points.filter((point) => point.method === method).sort((a, b) => a.x - b.x),
            { x: "x", y: "y", stroke: "method", strokeWidth: 1.6, strokeDasharray: look(method).dash, clip: true },
          ),
        ),
        Plot.ruleX(
          points.filter((point) => point.sd),
          { x: "x", y1: "low", y2: "high", stroke: "method", clip: true },
        ),
        Plot.text(points.filter(outside), { x: "x", y: "at", text: () => (better === "lower" ? "▲" : "▼"), fill: "method" }),
        Plot.dot(points.filter((point) => !outside(point)), {
          x: "x",
          y: "y",
          stroke: "method",
          fill: "var(--paper)",
          symbol: "method",
          r: 4.5,
          strokeWidth: 1.6,
        }),
        Plot.dot(chosen, { x: "x", y: "y", stroke: "method", fill: "method", symbol: "method", r: 5 }),
        Plot.dot(
          chosen.filter((point) => ends.has(`${point.method} ${point.x}`)),
          { x: "x", y: "y", stroke: "currentColor", symbol: "circle", r: 10, strokeWidth: 1.4 },
        ),
        Plot.tip(
          points,
          Plot.pointer({
            x: "x",
            y: "at",
            title: (point) =>
              `${point.method}, ${figure.x} ${general(point.x)}\n${column} ${fixed(point.y, decimals)}${point.sd ? ` ± ${fixed(point.sd, decimals)}` : ""}, n = ${point.n}${point.chosen ? "\nthe best of its grid" : ""}`,
          }),
        ),
      ],
    },
    methods,
  );
}

function curvesSection(measured) {
  const places = measured
    .flatMap(({ table, block }) => {
      const runs = block.rows.filter((row) => row.runs && row.runs.length);
      const tasks = [...new Set(runs.flatMap((row) => row.runs.map((id) => taskOf(data.runs[id]))))];
      return tasks.map((task) => ({
        label: `${plainHeading(block)}${tasks.length > 1 ? `: ${task}` : ""}`,
        rows: runs,
        task,
        table,
      }));
    })
    .filter(({ rows, task }) =>
      rows.some((row) => row.runs.some((id) => taskOf(data.runs[id]) === task && data.runs[id].curves)),
    );
  if (!places.length) return null;
  const start = Math.max(
    0,
    places.findIndex(({ table }) => table.name.startsWith("table_nlg")),
  );
  let place = places[start],
    name = "train_loss";
  const held = h("div", {});
  const names = () => [
    ...new Set(
      place.rows.flatMap((row) =>
        row.runs
          .filter((id) => taskOf(data.runs[id]) === place.task)
          .flatMap((id) => Object.keys(data.runs[id].curves || {})),
      ),
    ),
  ];
  function fill() {
    const legal = names();
    if (!legal.includes(name)) name = legal[0];
    const groups = new Map(
      place.rows
        .map((row) => [row.method, row.runs.filter((id) => taskOf(data.runs[id]) === place.task)])
        .filter(([, ids]) => ids.length),
    );
    held.replaceChildren(
      h(
        "div",
        { class: "filters" },
        chooser(
          "of",
          places.map((one, k) => [String(k), one.label]),
          String(places.indexOf(place)),
          (k) => {
            place = places[+k];
            fill();
          },
        ),
        chooser(
          "curve",
          legal.map((one) => [one, one.replaceAll("_", " ")]),
          name,
          (one) => {
            name = one;
            fill();
          },
        ),
      ),
      curvePlot(`${place.label}: ${name.replaceAll("_", " ")}`, groups, name) || "",
    );
  }
  fill();
  return h(
    "section",
    {},
    h("h2", {}, "Training and validation"),
    h(
      "p",
      { class: "hint" },
      `The line is the mean over seeds, the band their range. At most ${data.made.points} points of a curve are here; its record holds all.`,
    ),
    held,
  );
}
