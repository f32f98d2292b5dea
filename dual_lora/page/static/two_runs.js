// Two runs side by side: what differs is marked.
function compareView(a, b) {
  const ids = Object.keys(data.runs);
  if (!data.runs[a] || !data.runs[b])
    return [h("h1", {}, "No such run"), h("p", {}, `No record here has the name ${data.runs[a] ? b : a}.`)];
  const [one, other] = [data.runs[a], data.runs[b]].map(settingsOf);
  const names = [...new Set([...Object.keys(one), ...Object.keys(other)])];
  const differs = names.filter((name) => !same(one[name], other[name]));
  const options = ids.map((id) => [id, named(id)]).sort((x, y) => x[1].localeCompare(y[1], "en"));
  const groups =
    one["method.name"] === other["method.name"]
      ? new Map([
          ["A", [a]],
          ["B", [b]],
        ])
      : new Map([
          [data.runs[a].method, [a]],
          [data.runs[b].method, [b]],
        ]);
  const curves = Object.keys(data.runs[a].curves || {}).filter((name) => (data.runs[b].curves || {})[name]);
  const samples = (data.runs[a].samples || [])
    .map((sample) => [sample, (data.runs[b].samples || []).find((theirs) => same(theirs[0], sample[0]))])
    .filter(([, theirs]) => theirs);
  const costs = [...new Set([...Object.keys(data.runs[a].cost), ...Object.keys(data.runs[b].cost)])];
  const sideTable = (label, rows) =>
    scrolled(
      label,
      h(
        "table",
        { class: "settings" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["", "A", "B"].map((text) => h("th", { scope: "col" }, text || h("span", { class: "unseen" }, label))),
          ),
        ),
        h(
          "tbody",
          {},
          rows.map(([name, left, right]) =>
            h(
              "tr",
              { class: left === right ? "" : "differs" },
              h("th", { scope: "row" }, name),
              h("td", {}, left),
              h("td", {}, right),
            ),
          ),
        ),
      ),
    );
  return [
    h("h1", {}, "Two runs side by side"),
    h(
      "div",
      { class: "filters" },
      chooser("A", options, a, (id) => {
        location.hash = `#compare/${id}/${b}`;
      }),
      chooser("B", options, b, (id) => {
        location.hash = `#compare/${a}/${id}`;
      }),
    ),
    h(
      "ul",
      { class: "sides" },
      [
        ["A", a],
        ["B", b],
      ].map(([side, id]) =>
        h(
          "li",
          {},
          h("strong", {}, side),
          " ",
          symbol(data.runs[id].method),
          " ",
          runLink(id, named(id)),
          `: ${score(data.runs[id]) || data.runs[id].status}`,
        ),
      ),
    ),
    h("h2", {}, differs.length ? `What differs: ${plural(differs.length, "setting")}` : "No setting differs"),
    differs.length
      ? sideTable(
          "settings that differ",
          differs.map((name) => [
            name,
            name in one ? general(one[name]) : "",
            name in other ? general(other[name]) : "",
          ]),
        )
      : null,
    h(
      "details",
      {},
      h("summary", {}, `${plural(names.length - differs.length, "setting")} in common`),
      facts(names.filter((name) => !differs.includes(name)).map((name) => [name, general(one[name])])),
    ),
    h("h2", {}, "Scores"),
    scoreTable([a, b]),
    curves.length
      ? [
          h("h2", {}, "Curves"),
          h(
            "div",
            { class: "plots" },
            curves.map((name) => curvePlot(name.replaceAll("_", " "), groups, name, { smaller: true })),
          ),
        ]
      : null,
    h("h2", {}, "Cost and origin"),
    sideTable("cost and origin", [
      ...costs.map((name) => [costOf(name)[0], ...[a, b].map((id) => costText(data.runs[id], name))]),
      ...["commit", "card", "versions"].map((name) => [
        name,
        data.runs[a].origin[name] || "",
        data.runs[b].origin[name] || "",
      ]),
    ]),
    samples.length
      ? [
          h("h2", {}, "Samples"),
          samples.map(([left, right]) =>
            sampleView({
              input: left[0][0],
              reference: left[0][1],
              replies: [
                ["A", left[1]],
                ["B", right[1]],
              ],
            }),
          ),
        ]
      : null,
  ];
}
