// The question, what the endpoints say, how much is run, what is unknown.
const SIGNS = {
  supported: "✓",
  "not supported": "✗",
  "equal within the margin": "≈",
  "not decidable": "?",
  "not run": "–",
};
const badge = (answer) =>
  h(
    "span",
    { class: `badge ${answer.replaceAll(" ", "-")}` },
    h("span", { "aria-hidden": "true" }, SIGNS[answer] || "?"),
    " ",
    answer,
  );

function overviewView() {
  const counts = Object.keys(SIGNS).map((answer) => [
    answer,
    data.verdicts.filter((verdict) => verdict.answer === answer && verdict.name === "dual_lora").length,
  ]);
  return [
    h("h1", {}, data.question[0]),
    h("p", { class: "lead" }, data.question[1], " Here is what the records say."),
    data.made.refused && data.made.refused.length
      ? h(
          "div",
          { class: "warning", role: "alert" },
          h("strong", {}, `${plural(data.made.refused.length, "file")} refused; the rest is shown.`),
          h(
            "ul",
            {},
            data.made.refused.map((text) => h("li", {}, text)),
          ),
        )
      : null,
    h(
      "ul",
      { class: "tiles" },
      counts.map(([answer, count]) =>
        h("li", { class: count ? "" : "zero-count" }, h("span", { class: "count" }, grouped(count)), badge(answer)),
      ),
    ),
    h(
      "p",
      { class: "hint" },
      "Endpoints of Dual LoRA: one for each model and task. An endpoint is named before its runs.",
    ),
    h(
      "details",
      { class: "rule" },
      h("summary", {}, "The rule"),
      h(
        "ul",
        {},
        data.rule.map((line) => h("li", {}, line)),
      ),
    ),
    h("h2", {}, "What the endpoints say"),
    d3.sort(data.tables, (table) => -decided(table)).map(verdictSection),
    coverageSection(),
    unknownSection(),
  ];
}

// Tables whose runs were made to decide come first, then older ones, then those that wait for runs.
function decided(table) {
  const why = data.verdicts.filter((verdict) => verdict.table === table.name && verdict.answer !== "not run");
  return why.length ? (why.some((verdict) => verdict.why !== data.answers.exploratory[1]) ? 2 : 1) : 0;
}

function verdictSection(table) {
  const own = data.verdicts.filter((verdict) => verdict.table === table.name);
  if (!own.length) return null;
  const blocks = d3.sort(
    d3.groups(own, (verdict) => verdict.block),
    ([, verdicts]) => verdicts.every((verdict) => verdict.answer === "not run"),
  );
  return h(
    "section",
    {},
    h("h3", {}, h("a", { href: `#table/${table.name}` }, table.title)),
    blocks.map(([place, verdicts]) => {
      const block = table.blocks[place];
      const measured = verdicts.filter((verdict) => verdict.answer !== "not run");
      const waiting = verdicts.filter((verdict) => verdict.answer === "not run");
      return [
        measured.length ? measuredVerdicts(table, block, measured) : null,
        waiting.length
          ? h(
              "details",
              { class: "waiting" },
              h("summary", {}, badge("not run"), ` ${block.heading}: ${plural(waiting.length, "comparison")}`),
              h("p", {}, [...new Set(waiting.map((verdict) => `${verdict.model}, ${verdict.method}`))].join("; ")),
              commands([...new Set(waiting.flatMap((verdict) => verdict.todo || []))].slice(0, 24)),
              blockTakes(table, block),
            )
          : null,
      ];
    }),
  );
}

// A block of several panels says it below the last.
function blockTakes(table, block) {
  const { takes: text } = table.blocks.findLast((one) => one.experiment === block.experiment);
  return text ? h("p", { class: "hint" }, `The whole block: ${text}.`) : null;
}

function measuredVerdicts(table, block, verdicts) {
  const ordered = [...verdicts].sort((a, b) => (b.name === "dual_lora") - (a.name === "dual_lora"));
  const { margin, better, decimals, endpoint, reference } = ordered[0];
  const half = reach(ordered.map((verdict) => verdict.diff).filter(Boolean), margin);
  const open = (verdict) => showCell(table, block, block.rows[verdict.row], verdict.column);
  const reasons = new Set(ordered.map((verdict) => verdict.why));
  return [
    headed("h4", block.heading),
    sortable(
      block.heading,
      [
        { label: "method", class: "who", of: (v) => [symbol(v.method), " ", v.method], by: (v) => v.method },
        {
          label: `better than ${reference}?`,
          of: (v) => [badge(v.answer), reasons.size > 1 ? h("span", { class: "why" }, v.why) : null],
          by: (v) => v.answer,
        },
        {
          label: `difference in ${endpoint}`,
          below: forestScale(half, better, decimals),
          class: "forest-cell",
          of: (v) =>
            v.diff
              ? forest(v.diff, half, {
                  margin,
                  better,
                  decimals,
                  label: `${v.method}, ${endpoint}, difference from ${reference}`,
                  method: v.method,
                })
              : null,
          by: (v) => (v.diff ? v.diff[0] : null),
        },
        {
          label: "95 % interval",
          class: "number",
          of: (v) => (v.diff ? `${interval(v.diff, decimals + 1)}, ${plural(v.diff[3], "pair")}` : ""),
          by: (v) => (v.diff ? v.diff[0] : null),
        },
        {
          label: endpoint,
          class: "number",
          of: (v) =>
            h(
              "button",
              {
                type: "button",
                class: "cell",
                onclick: () => open(v),
                "aria-label": `${v.method}, ${endpoint}: ${fixed(v.value, decimals)}`,
              },
              fixed(v.value, decimals),
            ),
          by: (v) => v.value,
        },
        {
          label: reference,
          class: "number",
          of: (v) => (v.against === null ? "" : fixed(v.against, decimals)),
          by: (v) => v.against,
        },
      ],
      ordered,
      {},
    ),
    h("p", { class: "hint" }, [
      reasons.size === 1
        ? `${ordered[0].answer[0].toUpperCase()}${ordered[0].answer.slice(1)}: ${ordered[0].why}. `
        : "",
      margin ? `Grey: the margin ± ${margin}, within which methods count as equal.` : "",
    ]),
  ];
}

function coverageSection() {
  if (!data.coverage.length) return null;
  return h(
    "section",
    {},
    h("h2", {}, "How much of the paper is run here"),
    h(
      "p",
      { class: "hint" },
      "Cells of the published protocol, on the paper's models. What is measured so far is smaller: see the tables.",
    ),
    data.coverage.map((row) =>
      h(
        "div",
        { class: "coverage" },
        h("a", { href: `#table/${row.table}` }, row.title),
        h("progress", { max: row.cells, value: row.measured, "aria-label": `${row.title}: cells run` }),
        h(
          "span",
          {},
          `${grouped(row.measured)} of ${plural(row.cells, "cell")} and ${grouped(row.done)} of ${plural(row.runs, "run")}; ${plural(row.published, "published number")} next to them${row.waiting[0] ? `; the rest: ${takes(row.waiting)}` : ""}`,
        ),
      ),
    ),
  );
}

function unknownSection() {
  const reasons = d3.rollups(
    data.verdicts.filter((verdict) => verdict.answer === "not decidable"),
    (part) => part.length,
    (verdict) => verdict.why,
  );
  const runs = Object.values(data.runs);
  const guessing = runs.filter((run) =>
    Object.values(pool[run.sources] || {}).some((source) => /^guess/i.test(source)),
  ).length;
  const dirty = runs.filter((run) => (pool[run.origin].commit || "").includes("uncommitted")).length;
  const failed = runs.filter((run) => run.status !== "finished").length;
  const waiting = data.verdicts.filter((verdict) => verdict.answer === "not run").length;
  const second = data.tables.flatMap((table) =>
    table.blocks.flatMap((block) => block.rows.filter((row) => (row.marks || "").includes("s") && row.source)),
  ).length;
  return h(
    "section",
    {},
    h("h2", {}, "What is unknown"),
    h(
      "ul",
      {},
      waiting ? h("li", {}, `${plural(waiting, "comparison")} not run.`) : null,
      reasons.map(([why, count]) => h("li", {}, `${plural(count, "comparison")} not decidable: ${why}.`)),
      second ? h("li", {}, `${plural(second, "published row")} known second-hand only (mark s).`) : null,
      guessing
        ? h(
            "li",
            {},
            `${grouped(guessing)} of ${plural(runs.length, "run")} with settings that have no public source and were chosen here; each says which.`,
          )
        : null,
      dirty ? h("li", {}, `${plural(dirty, "run")} from a working tree with uncommitted changes.`) : null,
      failed ? h("li", {}, `${plural(failed, "run")} did not finish.`) : null,
    ),
  );
}

function readingView() {
  return [
    h("h1", {}, "How to read this page"),
    h("h2", {}, "Verdicts"),
    h(
      "ul",
      {},
      data.rule.map((line) => h("li", {}, line)),
    ),
    h("h2", {}, "Cells"),
    h(
      "ul",
      {},
      h(
        "li",
        {},
        "62.0 ± 2.0: mean and sample standard deviation (n − 1) over seeds; the median where a block says so.",
      ),
      h("li", {}, "Bold: better than the reference in the block's endpoint. Nothing else is bold."),
      h(
        "li",
        {},
        `Grey hours: not run, and what the cell's runs would take on one ${data.hours.card || "GPU"}, by arithmetic; a dot: without an estimate. Every cell opens, by click or by Enter: an empty one shows the command that fills it and what the hours rest on, the others their seeds, runs, settings, sources and the command that repeats them.`,
      ),
      h(
        "li",
        {},
        "Published numbers are in rows of their own and below our value where it is of the same model and method.",
      ),
    ),
    h("h2", {}, "Interval plots"),
    h(
      "p",
      {},
      "Ours minus the reference, with its 95 % interval from three pairs on. The thin line is zero, the grey band the margin within which two methods count as equal, an arrow an end outside the plot.",
    ),
    h("h2", {}, "Marks"),
    facts(Object.entries(data.marks)),
  ];
}
