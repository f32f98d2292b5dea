// One run: cost, origin, curves, scores, samples, settings with their sources.
function runView(id) {
  const run = data.runs[id];
  if (!run) return [h("h1", {}, "No such run"), h("p", {}, `No record here has the name ${id}.`)];
  const held = settingsOf(run),
    sources = run.sources || {},
    off = run.off || {};
  const sourceOf = (name) => sources[name.replace(/^recipe\./, "")] || sources[name.replace(".settings.", ".")];
  const told = run.origin,
    ran = run.execution;
  const peers = Object.entries(data.runs).filter(
    ([other, peer]) =>
      other !== id &&
      peer.task === run.task &&
      peer.model === run.model &&
      peer.profile === run.profile &&
      peer.protocol === run.protocol &&
      peer.seed === run.seed &&
      peer.method !== run.method,
  );
  return [
    h("p", { class: "crumbs" }, h("a", { href: "#runs" }, "Runs"), " / ", id),
    h("h1", {}, symbol(run.method, 20), " ", `${run.method} on ${run.task}`),
    h(
      "p",
      { class: "lead" },
      `${run.model}${run.seed === undefined ? "" : `, seed ${run.seed}`}, protocol ${run.protocol}, profile ${run.profile}: ${run.status}${run.message ? ` (${run.message})` : ""}`,
    ),
    run.headline
      ? h(
          "p",
          { class: "big" },
          score(run),
          h("span", { class: "muted" }, ` ${run.headline[2]}, checkpoint ${run.headline[3]}, ${run.headline[4]}`),
        )
      : null,
    run.curves && run.curves.train_loss
      ? h("p", { class: "hint" }, `Training loss at the end: ${general(run.curves.train_loss[1].at(-1))}`)
      : null,
    inTables(id),
    run.again ? [h("h2", {}, "Repeat"), command(run.again)] : null,
    h(
      "div",
      { class: "columns" },
      h(
        "section",
        {},
        h("h2", {}, "Cost"),
        facts(Object.entries(COSTS).map(([name, [label]]) => [label, costText(run, name)])),
      ),
      h(
        "section",
        {},
        h("h2", {}, "Where from"),
        facts([
          ...Object.entries(told),
          ["typed", run.typed],
          ["began", (run.times || [])[0]],
          ["ended", (run.times || [])[1]],
          ["recipe", run.recipe],
          ["learning rates tried", String(run.trials)],
          ...Object.entries(ran)
            .filter(([name]) => name !== "device")
            .map(([name, value]) => [
              name.replaceAll("_", " "),
              typeof value === "object" ? general(value) : general(value),
            ]),
        ]),
      ),
    ),
    run.curves
      ? [
          h("h2", {}, "Curves"),
          h(
            "div",
            { class: "plots" },
            Object.keys(run.curves).map((name) =>
              curvePlot(name.replaceAll("_", " "), new Map([[run.method, [id]]]), name, { smaller: true }),
            ),
          ),
        ]
      : null,
    run.scores ? [h("h2", {}, "Scores"), scoreTable([id])] : null,
    run.notes
      ? [
          h("h2", {}, "Notes"),
          h(
            "ul",
            {},
            run.notes.map((note) => h("li", {}, note)),
          ),
        ]
      : null,
    run.samples
      ? [
          h("h2", {}, "Samples"),
          run.samples.map(([[input, reference], reply]) =>
            sampleView({ input, reference, replies: [[run.method, reply]] }),
          ),
        ]
      : null,
    h("h2", {}, "Settings"),
    h(
      "p",
      { class: "hint" },
      Object.keys(off).length
        ? `${plural(Object.keys(off).length, "setting")} differ${Object.keys(off).length === 1 ? "s" : ""} from today's recipe (marked).`
        : "All settings are those of today's recipe, or it names none.",
    ),
    run.settings
      .map((part) => Object.entries(part))
      .filter((part) => part.length)
      .map((part) => settingsPart(part, sourceOf, off)),
    peers.length
      ? [
          h("h2", {}, "Side by side with"),
          h(
            "ul",
            {},
            peers.slice(0, 12).map(([other]) => h("li", {}, h("a", { href: `#compare/${id}/${other}` }, named(other)))),
          ),
        ]
      : null,
  ];
}

// What a run took: how each cost is called and written.
const COSTS = {
  train_seconds: ["training", seconds],
  eval_seconds: ["evaluation", seconds],
  tokens_per_second: ["tokens a second", (value) => general(Math.round(value))],
  peak_memory_bytes: ["peak memory", bytes],
  trainable_parameters: ["trainable parameters", grouped],
  trainable_parameters_without_head: ["without the head", grouped],
  total_parameters: ["all parameters", grouped],
  adapter_bytes: ["adapter's file", bytes],
  train_flops: ["training FLOPs", general],
};
const costOf = (name) => COSTS[name] || [name.replaceAll("_", " "), general];
function costText(run, name) {
  const value = run.cost[name];
  if (value === undefined || value === null) return "";
  const shared = !run.alone && ["train_seconds", "eval_seconds", "tokens_per_second"].includes(name);
  return costOf(name)[1](value) + (shared ? " (shared its card)" : "");
}

function inTables(id) {
  const found = data.tables.filter((table) =>
    table.blocks.some((block) => block.rows.some((row) => (row.runs || []).includes(id))),
  );
  return found.length
    ? h(
        "p",
        {},
        "In: ",
        found.map((table, place) => [place ? ", " : null, h("a", { href: `#table/${table.name}` }, table.title)]),
      )
    : null;
}

// Where a part of the settings has a source or differs from the recipe it is open from the start.
function settingsPart(part, sourceOf, off) {
  const short = (name) => name.replace(/^recipe\./, "").replace(".settings.", ".");
  const title = part[0][0].includes(".") ? part[0][0].split(".")[0] : "other";
  return h(
    "details",
    { open: part.some(([name]) => off[short(name)] || sourceOf(name)) },
    h("summary", {}, `${title}: ${plural(part.length, "setting")}`),
    scrolled(
      `settings of ${title}`,
      h(
        "table",
        { class: "settings" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["setting", "value", "source"].map((text) => h("th", { scope: "col" }, text)),
          ),
        ),
        h(
          "tbody",
          {},
          part.map(([name, value]) => {
            const source = sourceOf(name),
              stated = off[short(name)];
            return h(
              "tr",
              { class: stated ? "differs" : /^guess/i.test(source || "") ? "guess" : "" },
              h("th", { scope: "row" }, name),
              h("td", {}, general(value), stated ? h("span", { class: "tag" }, `recipe: ${general(stated[0])}`) : null),
              h("td", {}, source || ""),
            );
          }),
        ),
      ),
    ),
  );
}

function scoreTable(ids) {
  const entries = new Map();
  ids.forEach((id, side) =>
    (data.runs[id].scores || []).forEach((row) =>
      Object.entries(row[4]).forEach(([name, value]) => {
        const key = scoreKey(row, name);
        if (!entries.has(key)) entries.set(key, { where: row[0], name, sides: [] });
        entries.get(key).sides[side] = {
          value,
          items: row[1],
          unreadable: row[2],
          atChance: row[3],
          error: row[5][name],
        };
      }),
    ),
  );
  const rows = [...entries.values()];
  const two = ids.length === 2;
  const text = (row, side) => {
    const held = row.sides[side];
    return held
      ? [
          metric(row.name, held.value),
          held.error === undefined
            ? null
            : h(
                "span",
                { class: "spread", title: "standard error over the items" },
                ` ± ${fixed(100 * held.error, 1)}`,
              ),
        ]
      : "";
  };
  const difference = (row) =>
    row.sides[0] && row.sides[1] && row.sides[0].value !== null && row.sides[1].value !== null
      ? (row.sides[1].value - row.sides[0].value) * (UNBOUNDED.includes(row.name) ? 1 : 100)
      : null;
  const known = (row) => row.sides.find(Boolean);
  return sortable(
    "scores",
    [
      { label: "subset", of: (row) => row.where[0], by: (row) => row.where[0] },
      ...["split", "checkpoint", "scoring"].map((label, k) => ({
        label,
        of: (row) => row.where[k + 1],
        by: (row) => row.where[k + 1],
      })),
      { label: "metric", of: (row) => row.name.replaceAll("_", " "), by: (row) => row.name },
      ...ids.map((id, side) => ({
        label: two ? "AB"[side] : "score ± standard error",
        class: "number",
        down: true,
        of: (row) => text(row, side),
        by: (row) => (row.sides[side] ? row.sides[side].value : null),
      })),
      ...(two
        ? [
            {
              label: "B − A",
              class: "number",
              down: true,
              of: (row) =>
                difference(row) === null ? "" : signed(difference(row), UNBOUNDED.includes(row.name) ? 4 : 1),
              by: difference,
            },
          ]
        : []),
      {
        label: "chance",
        class: "number",
        of: (row) =>
          row.where[4] === null ? "" : fixed(100 * row.where[4], 1) + (known(row).atChance ? " (at it)" : ""),
        by: (row) => row.where[4],
      },
      { label: "items", class: "number", of: (row) => grouped(known(row).items), by: (row) => known(row).items },
      {
        label: "unreadable",
        class: "number",
        of: (row) =>
          row.sides
            .map((side) =>
              side
                ? `${grouped(side.unreadable)} (${fixed((100 * side.unreadable) / Math.max(1, side.items), 1)} %)`
                : "",
            )
            .filter((_, k) => k < ids.length)
            .join(" | "),
        by: (row) => known(row).unreadable,
      },
    ],
    rows,
    {},
  );
}
