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
    h("p", { class: "lead" }, data.question[1]),
    answerView(),
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
    h("p", { class: "hint" }, "“Dual LoRA is better”, by endpoint, which is one column of a block:"),
    h(
      "ul",
      { class: "tiles" },
      counts.map(([answer, count]) =>
        h("li", { class: count ? "" : "zero-count" }, h("span", { class: "count" }, grouped(count)), badge(answer)),
      ),
    ),
    h("p", { class: "hint" }, `${data.rule[0]} ${data.rule[1]}`),
    h(
      "details",
      { class: "rule" },
      h("summary", {}, "The whole rule"),
      h(
        "ul",
        {},
        data.rule.map((line) => h("li", {}, line)),
      ),
    ),
    h("h2", {}, "What the endpoints say"),
    d3.sort(data.tables, (table) => -decided(table)).map(verdictSection),
    waitingSection(),
    coverageSection(),
    unknownSection(),
  ];
}

// Tables whose runs were made to decide come first, before all those that compare Dual LoRA, then older ones, then those that wait for runs.
function decided(table) {
  const ran = data.verdicts.filter((verdict) => verdict.table === table.name && verdict.answer !== "not run");
  const meant = ran.filter((verdict) => verdict.why !== data.answers.exploratory[1]);
  return meant.some((verdict) => verdict.name === "dual_lora") ? 3 : meant.length ? 2 : ran.length ? 1 : 0;
}

function verdictSection(table) {
  const own = data.verdicts.filter((verdict) => verdict.table === table.name && verdict.answer !== "not run");
  if (!own.length) return null;
  return h(
    "section",
    {},
    h("h3", {}, h("a", { href: `#table/${table.name}` }, table.title)),
    d3.groups(own, (verdict) => verdict.block).map(([place, verdicts]) => measuredVerdicts(table, table.blocks[place], verdicts)),
  );
}

// The blocks without runs, each with the commands that do them and what these take.
function waitingSection() {
  const blocks = d3.groups(
    data.verdicts.filter((verdict) => verdict.answer === "not run"),
    (verdict) => verdict.table,
    (verdict) => verdict.block,
  );
  if (!blocks.length) return null;
  return h(
    "section",
    {},
    h("h2", {}, "Not run yet"),
    blocks.flatMap(([name, own]) =>
      own.map(([place, waiting]) => {
        const block = tableOf[name].blocks[place];
        const last = lastPanel(tableOf[name], block);
        return h(
          "details",
          { class: "waiting" },
          h(
            "summary",
            {},
            h("strong", {}, tableOf[name].title),
            `: ${plainHeading(block)}: ${plural(waiting.length, "comparison")}`,
            last.waiting[0] > last.waiting[2] ? h("span", { class: "hours" }, ` ${hoursOf(last.waiting)}`) : null,
          ),
          h("p", {}, [...new Set(waiting.map((verdict) => `${verdict.model}, ${verdict.method}`))].join("; ")),
          commands([...new Set(waiting.flatMap((verdict) => verdict.todo || []))].slice(0, 24)),
          last.takes ? h("p", { class: "hint" }, `The whole block: ${last.takes}.`) : null,
          h("p", {}, h("a", { href: `#table/${name}` }, "the table")),
        );
      }),
    ),
    data.hours.card
      ? h("p", { class: "hint" }, `Hours: of the whole block on one ${data.hours.card}, planned by arithmetic.`)
      : null,
  );
}

// What tells rows of one method apart, as " (at 8e-3)".
const setting = (verdict) => verdict.method.match(/ \(.*$/)?.[0] ?? "";

// The answer in a sentence, and the comparisons behind it.
function answerView() {
  const { short, text, show } = data.headline;
  return h(
    "div",
    { class: "answer" },
    h("p", {}, h("strong", {}, `${short}.`), ` ${text}`),
    show.length
      ? h(
          "ul",
          {},
          show
            .map((place) => data.verdicts[place])
            .map((verdict) =>
              h(
                "li",
                {},
                badge(verdict.answer),
                ": ",
                h("a", { href: `#table/${verdict.table}` }, `${tableOf[verdict.table].title}, ${verdict.model}`),
                `: ${verdict.endpoint} ${inUnit(verdict)} against ${verdict.reference}${setting(verdict)} (${verdict.better} is better), ${plural(verdict.diff[3], "pair")} of runs${verdict.checks ? `; a check of ${verdict.checks}, not counted` : ""}`,
              ),
            ),
        )
      : null,
  );
}

const inUnit = ({ diff, decimals, unit }) => {
  const [mean, ...limits] = interval(diff, decimals + 1).split(" [");
  return `${mean}${unit ? ` ${unit}` : ""}${limits.length ? ` [${limits[0]}` : ""}`;
};

function measuredVerdicts(table, block, verdicts) {
  const ordered = [...verdicts].sort((a, b) => (b.name === "dual_lora") - (a.name === "dual_lora"));
  const { margin, better, decimals, endpoint, reference } = ordered[0];
  const half = reach(ordered.map((verdict) => verdict.diff).filter(Boolean), margin);
  const open = (verdict) => showCell(table, block, block.rows[verdict.row], verdict.column);
  const reasons = new Set(ordered.map((verdict) => verdict.why));
  return [
    headed("h4", block.heading),
    sortable(
      `${table.title}: ${block.heading}`,
      [
        { label: "method", class: "who", of: (v) => [symbol(v.method), " ", v.method], by: (v) => v.method },
        {
          label: ordered[0].asked || `better than ${reference}?`,
          of: (v) => [badge(v.answer), reasons.size > 1 ? h("span", { class: "why" }, v.why) : null],
          by: (v) => v.answer,
        },
        {
          label: `difference in ${endpoint}${ordered[0].unit ? `, ${ordered[0].unit}` : ""}`,
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
                "aria-label": `${v.method}, ${endpoint}: ${v.value === null ? "details" : fixed(v.value, decimals)}`,
              },
              v.value === null ? "details" : fixed(v.value, decimals),
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
  const part = (row) => h("progress", { max: row.cells, value: row.measured, "aria-label": `${row.title}: cells run` });
  return h(
    "section",
    {},
    h("h2", {}, "How much of the paper is run here"),
    h(
      "p",
      { class: "hint" },
      "Cells of the published protocol, on the paper's models. What is measured so far is smaller: see the tables.",
    ),
    sortable(
      "how much of the paper is run",
      [
        { label: "table", of: (row) => h("a", { href: `#table/${row.table}` }, row.title) },
        { label: "cells run", of: (row) => [part(row), ` ${grouped(row.measured)} of ${grouped(row.cells)}`] },
        { label: "runs done", class: "number", of: (row) => `${grouped(row.done)} of ${grouped(row.runs)}` },
        { label: "published numbers next to them", class: "number", of: (row) => grouped(row.published) },
        {
          label: `GPU-hours left${data.hours.card ? `, on one ${data.hours.card}` : ""}`,
          of: (row) => [
            row.waiting[0] > row.waiting[2] ? h("span", { class: "hours" }, hoursOf(row.waiting)) : null,
            row.waiting[2]
              ? h("span", { class: "why" }, `${plural(row.waiting[2], "run")} without an estimate: ${row.waiting[3]}`)
              : null,
          ],
        },
      ],
      data.coverage,
      {},
    ),
  );
}

function unknownSection() {
  const reasons = d3.rollups(
    data.verdicts.filter((verdict) => verdict.answer === "not decidable"),
    (part) => part.length,
    (verdict) => verdict.why,
  );
  const { guessed, dirty, failed } = data.unknown;
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
      guessed
        ? h(
            "li",
            {},
            `${grouped(guessed)} of ${plural(data.made.records, "run")} with settings that have no public source and were chosen here; each says which.`,
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
