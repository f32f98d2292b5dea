// Where a number comes from: opened by click or key on any cell.
const dialog = document.getElementById("details");
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});

function opened(title, ...body) {
  dialog.replaceChildren(
    h(
      "div",
      { class: "details-head" },
      h("h2", { id: "details-title" }, title),
      h("button", { type: "button", class: "small close", autofocus: true, onclick: () => dialog.close() }, "close"),
    ),
    h("div", { class: "details-body" }, ...body),
  );
  dialog.showModal();
  dialog.scrollTop = 0;
}

function showCell(table, block, row, place) {
  const column = block.columns[place],
    cell = row.cells[place];
  const title = `${row.model}, ${row.method}: ${column.label}`;
  if (row.source) return opened(title, publishedCell(table, row, column, cell));
  const runs = (row.runs || [])
    .map((id) => [id, data.runs[id]])
    .filter(([, run]) => run && column.task.split(", ").includes(taskOf(run)));
  opened(
    title,
    cellValue(block, column, cell),
    publishedBeside(table, block, row, place),
    seedTable(
      column,
      cell,
      runs,
      block.rows.find(
        (other) => other.is && other !== row && other.method === block.reference && other.model === row.model,
      ),
    ),
    cellRuns(runs),
    whereFrom(runs),
    cell.v === undefined || cell.v === null
      ? [h("h3", {}, cell.word ? "Run it again" : "Fill it"), commands(cell.todo), cellHours(lastPanel(table, block), row, cell)]
      : row.todo && row.todo.length
        ? [h("h3", {}, "Runs of this row that are missing"), commands(row.todo)]
        : null,
    row.again && row.again.length ? [h("h3", {}, "Repeat"), commands(row.again)] : null,
  );
}

// What filling a cell takes, and what that rests on. Where trials choose the settings, the commands do the whole block.
function cellHours({ takes: whole }, row, cell) {
  if (!cell.waiting) return null;
  return h(
    "p",
    { class: "hint" },
    `This cell: ${takes(cell.waiting)}`,
    cell.waiting[0] > cell.waiting[2] ? ` (${data.hours.basis[row.is[0]]}).` : ".",
    cell.todo.some((text) => text.includes(" tune ")) && whole
      ? ` The commands do the trials and the whole block: ${whole}.`
      : null,
  );
}

// The name of a run's task as the sweep has it.
const taskOf = (run) => run.settings[1]["task.name"];

function publishedCell(table, row, column, cell) {
  return [
    h(
      "p",
      { class: "big" },
      cell.v === null
        ? "not printed"
        : fixed(cell.v, column.decimals) + (cell.sd ? ` ± ${fixed(cell.sd, column.decimals)}` : ""),
    ),
    facts([
      ["printed in", table.sources[row.source - 1]],
      ["doubt", [...(row.marks || "")].map((mark) => data.marks[mark]).join("; ")],
    ]),
  ];
}

function cellValue(block, column, cell) {
  if (cell.v === undefined || cell.v === null) return h("p", { class: "big" }, cell.word || "not run");
  const tests = cell.tests;
  const unit = column.decimals + 1;
  return [
    h(
      "p",
      { class: "big" },
      fixed(cell.v, column.decimals) + (cell.sd === undefined ? "" : ` ± ${fixed(cell.sd, column.decimals)}`),
    ),
    facts([
      ["made of", plural(cell.n, "value")],
      [
        "95 % interval of the mean",
        cell.low === undefined ? null : `${fixed(cell.low, unit)} to ${fixed(cell.high, unit)}`,
      ],
      [
        `difference from ${block.reference}`,
        cell.diff ? `${interval(cell.diff, unit)}, ${plural(cell.diff[3], "pair")}` : null,
      ],
      [
        "tests",
        tests
          ? [
              ["Holm p", tests.p],
              ["sign-flip p", tests.sign_flip],
              ["TOST Holm p", tests.p_equal],
            ]
              .filter(([, p]) => p !== undefined)
              .map(([name, p]) => probability(name, p))
              .join("; ")
          : null,
      ],
      ["blocked difference", tests && tests.blocked ? interval(tests.blocked, unit) : null],
      ...itemNoise(tests && tests.items, unit),
      ["verdict", tests ? (data.answers[tests.verdict] || [tests.verdict]).join(": ") : null],
      ["marks", [...(cell.marks || "")].map((mark) => `${mark}: ${data.marks[mark]}`).join("; ")],
    ]),
  ];
}

// How much of the difference is the draw of the test items.
function itemNoise(items, decimals) {
  if (!items) return [];
  return [
    [
      "noise of the test items",
      `one run's score has sd ${fixed(items.one, decimals)}, the difference ${fixed(items.pair, decimals)}`,
    ],
    ["95 % interval over items and seeds", `${signed(items.low, decimals)} to ${signed(items.high, decimals)}`],
    ["McNemar", items.mcnemar === null ? null : probability("mid-p", items.mcnemar)],
  ];
}

function publishedBeside(table, block, row, place) {
  const column = block.columns[place];
  const printed = block.rows.filter((other) => other.source && same(other.of, row.is) && other.cells[place].v !== null);
  if (!printed.length) return null;
  return [
    h("h3", {}, "Published"),
    facts(
      printed.map((other) => [
        `${other.method}: ${fixed(other.cells[place].v, column.decimals)}`,
        table.sources[other.source - 1] + ((other.marks || "").includes("s") ? " (second-hand)" : ""),
      ]),
    ),
  ];
}

// The seeds' values; where the reference ran the same task with the same seed, a link shows both side by side.
function seedTable(column, cell, runs, reference) {
  if (!cell.strata) return null;
  const tasks = column.task.split(", "); // in the order of the strata
  const rows = cell.strata.flatMap((part, k) =>
    part.map(([seed, value]) => ({
      seed,
      value,
      task: cell.strata.length > 1 ? tasks[k] : tasks[0],
      runs: runs
        .filter(
          ([, run]) =>
            (run.seed === undefined || run.seed === seed) && (cell.strata.length === 1 || taskOf(run) === tasks[k]),
        )
        .map(([id]) => id),
    })),
  );
  const places = new Map(
    d3
      .groups(rows, (row) => row.task)
      .map(([task, own]) => {
        const [low, high] = d3.extent(own, (row) => row.value);
        return [task, d3.scaleLinear([low, high === low ? low + 1 : high], [6, 114])];
      }),
  );
  const paired = (id) =>
    reference
      ? reference.runs.find(
          (other) =>
            data.runs[other] &&
            data.runs[id].seed !== undefined &&
            data.runs[other].seed === data.runs[id].seed &&
            taskOf(data.runs[other]) === taskOf(data.runs[id]),
        )
      : null;
  return [
    h("h3", {}, "Seeds"),
    scrolled(
      "seeds",
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            [cell.strata.length > 1 ? "task" : null, "seed", column.label, "", "run"]
              .filter((text) => text !== null)
              .map((text) => h("th", { scope: "col" }, text || h("span", { class: "unseen" }, "place"))),
          ),
        ),
        h(
          "tbody",
          {},
          rows.map((row) =>
            h(
              "tr",
              {},
              cell.strata.length > 1 ? h("td", {}, row.task) : null,
              h("td", {}, String(row.seed)),
              h("td", { class: "number" }, fixed(row.value, column.decimals + 1)),
              h(
                "td",
                {},
                svg(
                  "svg",
                  { width: 120, height: 14, "aria-hidden": "true" },
                  svg("line", { x1: 6, x2: 114, y1: 7, y2: 7, class: "zero" }),
                  svg("circle", { cx: places.get(row.task)(row.value), cy: 7, r: 4, class: "seed" }),
                ),
              ),
              h(
                "td",
                {},
                row.runs.map((id) => [
                  runLink(id),
                  paired(id)
                    ? [
                        " ",
                        h("a", { href: `#compare/${paired(id)}/${id}`, class: "muted" }, `next to ${reference.method}`),
                      ]
                    : null,
                ]),
              ),
            ),
          ),
        ),
      ),
    ),
  ];
}

function cellRuns(runs) {
  const failed = runs.filter(([, run]) => run.status !== "finished");
  return failed.length
    ? [
        h("h3", {}, "Runs that did not finish"),
        h(
          "ul",
          {},
          failed.map(([id, run]) =>
            h("li", {}, runLink(id), `: ${run.status}${run.message ? `, ${run.message}` : ""}`),
          ),
        ),
      ]
    : null;
}

// What all runs of a cell share is said once; where they differ, each value with its number of runs.
function whereFrom(runs) {
  if (!runs.length) return null;
  const counted = (of) => {
    const counts = d3.rollups(
      runs.map(([, run]) => of(run)).filter(Boolean),
      (part) => part.length,
      (text) => text,
    );
    return counts.map(([text, count]) => (counts.length > 1 ? `${text} (${plural(count, "run")})` : text)).join("; ");
  };
  const off = new Map(runs.flatMap(([, run]) => Object.entries(run.off || {})));
  const sources = Object.assign({}, ...runs.map(([, run]) => run.sources || {}));
  const guesses = Object.entries(sources).filter(([, source]) => /^guess/i.test(source));
  return [
    h("h3", {}, "Where from"),
    facts([
      ["commit", counted((run) => run.origin.commit)],
      ["card", counted((run) => run.origin.card)],
      ["versions", counted((run) => run.origin.versions)],
      ["recipe", counted((run) => run.recipe)],
      ["protocol, profile", counted((run) => `${run.protocol}, ${run.profile}`)],
      ["learning rates tried", counted((run) => String(run.trials))],
      [
        "differs from today's recipe",
        [...off].map(([name, [stated, held]]) => `${name} = ${general(held)} (recipe: ${general(stated)})`).join("; "),
      ],
    ]),
    guesses.length
      ? h(
          "details",
          {},
          h("summary", {}, `${plural(guesses.length, "setting")} without a public source`),
          facts(guesses),
        )
      : null,
    Object.keys(sources).length > guesses.length
      ? h(
          "details",
          {},
          h("summary", {}, "Sources of the other settings"),
          facts(Object.entries(sources).filter(([name]) => !guesses.some(([guess]) => guess === name))),
        )
      : null,
  ];
}
