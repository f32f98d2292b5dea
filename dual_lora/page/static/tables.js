// A table: its blocks, measured ones first, filtered by model, method, task and protocol.
const measuredHere = (row) => !row.source && row.cells.some((cell) => cell.v !== null || cell.word);
const blockMeasured = (block) => block.rows.some(measuredHere);

function tableView(name) {
  const table = tableOf[name];
  const filters = { model: "", method: "", task: "", protocol: "", rows: "known" };
  const blocks = [...table.blocks].sort((a, b) => blockMeasured(b) - blockMeasured(a));
  const values = (of) => [
    ["", "all"],
    ...[...new Set(blocks.flatMap(of))].sort((a, b) => a.localeCompare(b, "en")).map((text) => [text, text]),
  ];
  const options = {
    model: values((block) => block.rows.map((row) => row.model)),
    method: values((block) => block.rows.map((row) => row.method)),
    task: values((block) => block.columns.flatMap((column) => column.task.split(", "))),
    protocol: values((block) => [block.protocol]),
  };
  const held = h("div", {});
  const states = new Map(blocks.map((block) => [block, { sort: {}, focus: focusOf(block) }]));
  function fill() {
    const shown = blocks
      .filter((block) => !filters.protocol || block.protocol === filters.protocol)
      .map((block) => blockView(table, block, filters, states.get(block), fill))
      .filter(Boolean);
    held.replaceChildren(...(shown.length ? shown : [h("p", { class: "hint" }, "No row fits these filters.")]));
  }
  const chosen = (key) => (value) => {
    filters[key] = value;
    fill();
    say(`${held.querySelectorAll("tbody tr").length} rows shown`);
  };
  fill();
  return [
    h("h1", {}, table.title),
    table.about ? h("p", { class: "lead" }, table.about) : null,
    h(
      "div",
      { class: "filters", role: "group", "aria-label": "Filters" },
      Object.entries(options)
        .filter(([, list]) => list.length > 2)
        .map(([key, list]) => chooser(key, list, "", chosen(key))),
      chooser(
        "rows",
        [
          ["known", "with a number"],
          ["here", "measured here"],
          ["all", "all, empty ones too"],
        ],
        "known",
        chosen("rows"),
      ),
    ),
    held,
    marksUsed(table),
    table.sources.length
      ? h(
          "section",
          {},
          h("h2", {}, "Sources"),
          h(
            "ol",
            {},
            table.sources.map((source) => h("li", {}, source)),
          ),
        )
      : null,
  ];
}

const focusOf = (block) =>
  Math.max(
    0,
    block.endpoint
      ? block.columns.findIndex((column) => column.label === block.endpoint.column)
      : block.columns.length - 1,
  );

function blockView(table, block, filters, state, refill) {
  const rows = block.rows.filter(
    (row) =>
      (!filters.model || row.model === filters.model) &&
      (!filters.method || row.method === filters.method) &&
      (filters.rows === "all" || measuredHere(row) || (filters.rows === "known" && row.source)),
  );
  const empty = block.rows.filter((row) => !row.source && !measuredHere(row)).length;
  const shownColumns = block.columns
    .map((column, place) => [column, place])
    .filter(([column]) => !filters.task || column.task.split(", ").includes(filters.task));
  if (!shownColumns.length || (!rows.length && (filters.model || filters.method || filters.rows === "here")))
    return null;
  if (!shownColumns.some(([, place]) => place === state.focus)) state.focus = shownColumns[shownColumns.length - 1][1];
  const focus = block.columns[state.focus];
  const estimates = rows.map((row) => row.cells[state.focus].diff).filter(Boolean);
  const margin = block.endpoint && block.endpoint.column === focus.label ? block.endpoint.margin : null;
  const half = reach(estimates, margin);
  const severalModels = new Set(rows.map((row) => row.model)).size > 1;
  const columns = [
    {
      label: "method",
      class: "who",
      of: (row) => [
        ownSymbol(row),
        " ",
        row.method,
        marksOf(row.marks),
        severalModels ? h("span", { class: "model" }, row.model) : null,
      ],
      by: (row) => row.method,
    },
    ...[
      {
        label: "from",
        of: (row) =>
          row.source
            ? h("span", { class: "published", title: table.sources[row.source - 1] }, `published [${row.source}]`)
            : "here",
        by: (row) => row.source || 0,
      },
    ].filter(() => rows.some((row) => row.source)),
    ...(estimates.length
      ? [
          {
            label: `${focus.label}: difference`,
            below: forestScale(half, focus.better, focus.decimals),
            class: "forest-cell",
            of: (row) =>
              row.cells[state.focus].diff
                ? forest(row.cells[state.focus].diff, half, {
                    margin,
                    better: focus.better,
                    decimals: focus.decimals,
                    label: `${row.method}, ${focus.label}, difference from ${block.reference}`,
                    method: row.method,
                  })
                : row.cells[state.focus].v !== null && row.method === block.reference
                  ? h("span", { class: "muted" }, "reference")
                  : null,
            by: (row) => (row.cells[state.focus].diff ? row.cells[state.focus].diff[0] : null),
            down: focus.better !== "lower",
          },
        ]
      : []),
    ...shownColumns.map(([column, place]) => ({
      label: column.label,
      class: "number",
      down: column.better !== "lower",
      of: (row) => cellView(table, block, row, place),
      by: (row) => row.cells[place].v,
    })),
    ...[
      { label: "n", class: "number", of: (row) => row.n, by: (row) => parseFloat(row.n) },
      { label: "rates tried", class: "number", of: (row) => row.trials, by: (row) => parseFloat(row.trials) },
      ...block.costs.map((label, place) => ({
        label,
        class: "number",
        of: (row) => row.cost[place] || "",
        by: (row) => parseFloat((row.cost[place] || "").replaceAll(",", "")) || null,
      })),
    ].filter((column) => rows.some((row) => column.of(row))),
  ];
  const left = lastPanel(table, block).waiting;
  const drawn = rows.map((row) =>
    Object.assign(row, { class: row.source ? "printed" : measuredHere(row) ? "" : "empty" }),
  );
  return h(
    "section",
    { class: "block" },
    headed("h2", block.heading),
    h(
      "p",
      { class: "hint" },
      `${grouped(block.done)} of ${plural(block.all, "run")} done${block.gpu_minutes ? `, ${general(block.gpu_minutes)} GPU minutes` : ""}${left[0] > left[2] ? `; the rest would take about ${hoursOf(left)} on one ${data.hours.card}` : ""}.${empty && filters.rows !== "all" ? ` ${plural(empty, "row")} without a number ${empty === 1 ? "is" : "are"} hidden.` : ""}`,
    ),
    rows.length
      ? [
          estimates.length
            ? h(
                "div",
                { class: "filters" },
                chooser(
                  "difference of",
                  shownColumns.map(([column, place]) => [String(place), column.label]),
                  String(state.focus),
                  (value) => {
                    state.focus = +value;
                    refill();
                  },
                ),
                h(
                  "span",
                  { class: "hint" },
                  `${focus.label}: difference from ${block.reference}, 95 % interval${margin ? `; grey: the margin ± ${margin}` : ""}`,
                ),
              )
            : null,
          sortable(block.heading, columns, drawn, state.sort),
        ]
      : h("p", { class: "hint" }, "Nothing is measured or published for these filters."),
    block.findings.length
      ? h(
          "ul",
          { class: "findings" },
          block.findings.map((finding) => h("li", {}, finding)),
        )
      : null,
    h("details", {}, h("summary", {}, "What the numbers are"), h("p", {}, block.legend)),
    block.notes.length
      ? h(
          "details",
          {},
          h("summary", {}, plural(block.notes.length, "note")),
          h(
            "ul",
            {},
            block.notes.map((note) => h("li", {}, note)),
          ),
        )
      : null,
    block.samples.length
      ? h(
          "details",
          {},
          h("summary", {}, `What the models wrote for ${plural(block.samples.length, "test input")}`),
          block.samples.map(sampleView),
        )
      : null,
    block.commands.length
      ? h(
          "details",
          {},
          h("summary", {}, "Commands that fill the empty cells"),
          commands(block.commands),
          block.takes ? h("p", { class: "hint" }, `${block.takes}.`) : null,
        )
      : null,
  );
}

// What a block of several panels lacks is said with the last.
const lastPanel = (table, block) => table.blocks.findLast((one) => one.experiment === block.experiment);

// A published row has the look of our method that it is of; one that we do not have has none.
const ownSymbol = (row) =>
  row.source && !(row.of && row.of[1])
    ? h("span", { class: "no-symbol" })
    : symbol(row.source ? data.labels[row.of[1]] || row.method : row.method);

// What a heading says of the commits that made its runs is set small.
function headed(tag, text) {
  const [name, ...made] = text.split(" [");
  return h(tag, {}, name, made.length ? h("span", { class: "made" }, ` [${made.join(" [")}`) : null);
}

function cellView(table, block, row, place) {
  const cell = row.cells[place],
    column = block.columns[place];
  if (row.source && cell.v === null) return null;
  const name = `${row.model}, ${row.method}, ${column.label}`;
  const open = () => showCell(table, block, row, place);
  if (cell.v === null)
    return h(
      "button",
      {
        type: "button",
        class: "cell none",
        onclick: open,
        "aria-label": `${name}: ${cell.word || "not run"}${cell.waiting ? `, ${takes(cell.waiting)}` : ""}`,
      },
      cell.word ? cell.word.replaceAll("_", " ") : null,
      cell.waiting && cell.waiting[0] > cell.waiting[2]
        ? h("span", { class: "hours" }, hoursOf(cell.waiting))
        : cell.word
          ? null
          : "·",
    );
  const spread = cell.sd === undefined ? "" : ` ± ${fixed(cell.sd, column.decimals)}`;
  const beside = row.source
    ? null
    : block.rows.find((other) => other.source && same(other.of, row.is) && other.cells[place].v !== null);
  return h(
    "button",
    {
      type: "button",
      class: "cell",
      onclick: open,
      "aria-label": `${name}: ${fixed(cell.v, column.decimals)}${spread}`,
    },
    cell.bold ? h("strong", {}, fixed(cell.v, column.decimals)) : fixed(cell.v, column.decimals),
    spread ? h("span", { class: "spread" }, spread) : null,
    marksOf(cell.marks),
    beside ? h("span", { class: "beside" }, `published ${fixed(beside.cells[place].v, column.decimals)}`) : null,
  );
}

function sampleView(sample) {
  return h(
    "div",
    { class: "sample" },
    h("p", { class: "input" }, sample.input),
    facts([["a reference", sample.reference], ...sample.replies.map(([row, text]) => [row, text || "(nothing)"])]),
  );
}

function marksUsed(table) {
  const used = new Set(
    table.blocks.flatMap((block) =>
      block.rows.flatMap((row) => [...(row.marks || ""), ...row.cells.flatMap((cell) => [...(cell.marks || "")])]),
    ),
  );
  const pairs = Object.entries(data.marks).filter(([mark]) => used.has(mark));
  return pairs.length ? h("section", {}, h("h2", {}, "Marks"), facts(pairs)) : null;
}
