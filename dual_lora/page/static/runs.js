// All runs: filters, order, and the choice of two.
const PARTS = ["model", "task", "method", "protocol", "profile", "status"];
const chosenRuns = [];

function score(run) {
  return run.headline ? `${metric(run.headline[0], run.headline[1])} ${run.headline[0].replaceAll("_", " ")}` : "";
}

function runsView() {
  const all = Object.entries(data.runs).map(([id, run]) => ({ id, run }));
  const filters = Object.fromEntries(PARTS.map((part) => [part, ""]));
  let words = "";
  const state = { most: 200 };
  const held = h("div", {}),
    count = h("p", { class: "hint" });
  const compare = h("div", { class: "compare-bar" });
  function fillBar() {
    compare.replaceChildren(
      h(
        "span",
        {},
        chosenRuns.length
          ? `Chosen: ${chosenRuns.map((id) => named(id)).join(" and ")}`
          : "Choose two runs to see them side by side.",
      ),
      chosenRuns.length === 2 ? h("a", { class: "action", href: `#compare/${chosenRuns.join("/")}` }, "compare") : "",
    );
  }
  const columns = [
    { label: "run", of: ({ id }) => runLink(id), by: ({ id }) => id },
    {
      hidden: "choose",
      of: ({ id }) => {
        const box = h("input", {
          type: "checkbox",
          "aria-label": `compare ${id}`,
          onchange: () => {
            if (box.checked) chosenRuns.push(id);
            else chosenRuns.splice(chosenRuns.indexOf(id), 1);
            if (chosenRuns.length > 2) {
              const dropped = chosenRuns.shift();
              const other = held.querySelector(`input[aria-label="compare ${CSS.escape(dropped)}"]`);
              if (other) other.checked = false;
            }
            fillBar();
          },
        });
        box.checked = chosenRuns.includes(id);
        return box;
      },
    },
    ...["model", "task", "method"].map((part) => ({
      label: part,
      of: ({ run }) => run[part],
      by: ({ run }) => run[part],
    })),
    {
      label: "seed",
      class: "number",
      of: ({ run }) => (run.seed === undefined ? "" : String(run.seed)),
      by: ({ run }) => run.seed,
    },
    {
      label: "score",
      class: "number",
      down: true,
      of: ({ run }) => score(run) || run.status,
      by: ({ run }) => (run.headline ? run.headline[1] : null),
    },
    {
      label: "learning rate",
      class: "number",
      of: ({ run }) => (rate(run) === undefined ? "" : general(rate(run))),
      by: ({ run }) => rate(run),
    },
    {
      label: "train s",
      class: "number",
      of: ({ run }) =>
        run.cost.train_seconds === undefined
          ? ""
          : h(
              "span",
              run.alone ? {} : { class: "muted", title: "shared its card" },
              fixed(run.cost.train_seconds, 0) + (run.alone ? "" : "*"),
            ),
      by: ({ run }) => run.cost.train_seconds,
    },
    {
      label: "peak GiB",
      class: "number",
      of: ({ run }) => (run.cost.peak_memory_bytes ? fixed(run.cost.peak_memory_bytes / 2 ** 30, 1) : ""),
      by: ({ run }) => run.cost.peak_memory_bytes,
    },
    {
      label: "trained",
      class: "number",
      of: ({ run }) => (run.cost.trainable_parameters === undefined ? "" : grouped(run.cost.trainable_parameters)),
      by: ({ run }) => run.cost.trainable_parameters,
    },
    {
      label: "adapter MiB",
      class: "number",
      of: ({ run }) => (run.cost.adapter_bytes ? fixed(run.cost.adapter_bytes / 2 ** 20, 1) : ""),
      by: ({ run }) => run.cost.adapter_bytes,
    },
    ...["protocol", "profile", "status"].map((part) => ({
      label: part,
      of: ({ run }) => run[part],
      by: ({ run }) => run[part],
    })),
  ];
  function fill() {
    const shown = all.filter(
      ({ id, run }) =>
        PARTS.every((part) => !filters[part] || run[part] === filters[part]) &&
        `${id} ${Object.values(run)
          .filter((value) => typeof value === "string")
          .join(" ")}`
          .toLowerCase()
          .includes(words),
    );
    count.textContent = `${grouped(shown.length)} of ${plural(all.length, "run")}. * shared its card with another run: its seconds are no cost.`;
    say(`${shown.length} runs shown`);
    held.replaceChildren(sortable("runs", columns, shown, state));
  }
  const options = (part) => [
    ["", "all"],
    ...[...new Set(all.map(({ run }) => run[part]))].sort().map((text) => [text, text]),
  ];
  fill();
  fillBar();
  return [
    h("h1", {}, "Runs"),
    h(
      "div",
      { class: "filters", role: "group", "aria-label": "Filters" },
      PARTS.map((part) => [part, options(part)])
        .filter(([, list]) => list.length > 2)
        .map(([part, list]) =>
          chooser(part, list, "", (value) => {
            filters[part] = value;
            fill();
          }),
        ),
      h(
        "label",
        { class: "choice" },
        h("span", {}, "text"),
        h("input", {
          type: "search",
          oninput: (event) => {
            words = event.target.value.toLowerCase();
            fill();
          },
        }),
      ),
    ),
    compare,
    count,
    held,
  ];
}

const named = (id) => {
  const run = data.runs[id];
  return `${run.method}, ${run.task}${run.seed === undefined ? "" : `, seed ${run.seed}`} (${id.slice(0, 6)})`;
};
const settingsOf = (run) =>
  Object.assign({}, ...run.settings, run.seed === undefined ? {} : { seed: run.seed });
const rate = (run) => run.settings.map((part) => part["recipe.learning_rate"]).find((held) => held !== undefined);
const scoreKey = ([where], name) => `${where.slice(0, 4).join(" · ")} · ${name}`;
