// Which view is shown, and the colour theme.
const VIEWS = {
  overview: ["Overview", overviewView],
  table: ["Tables", (name) => (tableOf[name] ? tableView(name) : tablesView())],
  tables: ["Tables", () => tablesView()],
  figures: ["Figures", figuresView],
  runs: ["Runs", runsView],
  run: ["Runs", runView],
  compare: ["Runs", compareView],
  reading: ["How to read", readingView],
};
const main = document.getElementById("main");

function tablesView() {
  return [
    h("h1", {}, "Tables"),
    h(
      "ul",
      { class: "index" },
      d3
        .sort(data.tables, (table) => !data.verdicts.some((verdict) => verdict.table === table.name))
        .map((table) =>
          h(
            "li",
            {},
            h("a", { href: `#table/${table.name}` }, table.title),
            h("p", {}, table.about),
            h(
              "p",
              { class: "hint" },
              `${grouped(d3.sum(uniqueBlocks(table), (block) => block.done))} of ${plural(
                d3.sum(uniqueBlocks(table), (block) => block.all),
                "run",
              )} done`,
            ),
          ),
        ),
    ),
  ];
}
const uniqueBlocks = (table) => [...new Map(table.blocks.map((block) => [block.experiment, block])).values()];

function navigation(active) {
  const links = [
    ["overview", "Overview"],
    ["tables", "Tables"],
    ["figures", "Figures"],
    ["runs", "Runs"],
    ["reading", "How to read"],
  ];
  document
    .getElementById("nav")
    .replaceChildren(
      ...links.map(([name, text]) =>
        h("a", { href: `#${name}`, "aria-current": VIEWS[active][0] === VIEWS[name][0] ? "page" : null }, text),
      ),
    );
}

// Going back or forward finds a view as it was left: filters, order, place. A link makes it anew.
const left = new Map();
let first = true,
  current = null,
  traversed = false;
history.scrollRestoration = "manual";
if (window.navigation)
  window.navigation.addEventListener("navigate", (event) => {
    traversed = event.navigationType === "traverse";
  });

function show() {
  const [name, ...words] = location.hash
    .slice(1)
    .split("/")
    .map((word) => {
      try {
        return decodeURIComponent(word);
      } catch {
        return word;
      }
    });
  if (name === "main") return main.focus();
  const view = VIEWS[name] ? name : "overview";
  if (dialog.open) dialog.close();
  navigation(view);
  if (current !== null) left.set(current, { nodes: [...main.childNodes], scroll: scrollY });
  current = location.hash;
  const before = traversed ? left.get(current) : null;
  main.replaceChildren(
    ...(before ? before.nodes : filled(document.createDocumentFragment(), {}, [VIEWS[view][1](...words)]).childNodes),
  );
  main.dataset.view = location.hash.slice(1);
  document.title = `${main.querySelector("h1").textContent} – Dual LoRA, measured`;
  if (!first) {
    scrollTo(0, before ? before.scroll : 0);
    main.focus({ preventScroll: true });
  }
  first = false;
}

const THEMES = ["auto", "light", "dark"];
const themeButton = document.getElementById("theme");
function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  themeButton.textContent = `theme: ${name}`;
  themeButton.onclick = () => theme(THEMES[(THEMES.indexOf(name) + 1) % THEMES.length]);
}
theme("auto");

document
  .getElementById("foot")
  .append(
    `Made by ${data.made.program} tables from ${plural(data.made.records, "record")}. `,
    "This file needs no network. Plots: Observable Plot 0.6.17 and D3 7.9.2 (ISC licence).",
  );
addEventListener("beforeprint", () => document.querySelectorAll(".rule").forEach((rule) => (rule.open = true)));

// What needs no run is shown at once. Until they are unpacked nothing on it can be clicked: that may ask for one.
main.inert = true;
if (!/^#(figures|runs?|compare)\b/.test(location.hash)) show();
await unpacking;
main.inert = false;
if (current !== location.hash) show();
addEventListener("hashchange", show);
