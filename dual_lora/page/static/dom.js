// Elements, numbers as text, and words for settings. All text goes into the page as text nodes: nothing is parsed.
const tableOf = Object.fromEntries(data.tables.map((table) => [table.name, table]));
const MINUS = "−";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => ![null, undefined, false, ""].includes(child)));
  return node;
}

const h = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const fixed = (value, decimals) => value.toFixed(decimals).replace("-", MINUS);
const signed = (value, decimals) => (value >= 0 ? "+" : "") + fixed(value, decimals);
const grouped = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, ",");
const plural = (count, noun) => `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;

function interval(estimate, decimals) {
  if (!estimate) return "";
  const [mean, low, high] = estimate;
  return signed(mean, decimals) + (low === null ? "" : ` [${signed(low, decimals)}, ${signed(high, decimals)}]`);
}

function general(value) {
  if (value === null || value === undefined) return "none";
  if (typeof value === "number") {
    if (Number.isInteger(value) && Math.abs(value) < 1e12) return grouped(value).replace("-", MINUS);
    const small = value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6);
    return (
      small
        ? value
            .toExponential(3)
            .replace(/\.?0+e/, "e")
            .replace("e+", "e")
        : String(+value.toPrecision(5))
    ).replace("-", MINUS);
  }
  if (Array.isArray(value)) return value.length ? value.map(general).join(", ") : "none";
  if (typeof value === "object")
    return (
      Object.entries(value)
        .map(([name, held]) => `${name}: ${general(held)}`)
        .join(", ") || "none"
    );
  return String(value);
}

const bytes = (value) => (value >= 2 ** 30 ? `${fixed(value / 2 ** 30, 1)} GiB` : `${fixed(value / 2 ** 20, 1)} MiB`);
const seconds = (value) =>
  value < 600 ? `${fixed(value, 0)} s` : value < 7200 ? `${fixed(value / 60, 0)} min` : `${fixed(value / 3600, 1)} h`;
const probability = (name, value) =>
  value < 0.001 ? `${name} < 0.001` : `${name} = ${fixed(value, value < 0.1 ? 3 : 2)}`;
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

// What runs that are not done take: [runs, GPU-hours, runs without an estimate, why].
const hoursOf = ([, hours]) => (hours < 0.005 ? "< 0.01 h" : `${hours < 10 ? hours.toPrecision(hours < 0.1 ? 1 : 2) : grouped(Math.round(hours))} h`);
const takes = ([runs, hours, without, why]) =>
  [
    runs > without ? `${plural(runs - without, "run")}, about ${hoursOf([0, hours]).replace(" h", " GPU-hours")} on one ${data.hours.card}` : "",
    without ? `${plural(without, "run")} without an estimate: ${why}` : "",
  ]
    .filter(Boolean)
    .join("; ");

// A fraction as a percentage, unless the metric has no upper bound.
const UNBOUNDED = ["NIST", "NIST_python", "CIDEr", "loss", "full_sequence_loss"];
const metric = (name, value) =>
  value === null ? "undefined" : UNBOUNDED.includes(name) ? fixed(value, 4) : fixed(100 * value, 1);

function say(text) {
  document.getElementById("said").textContent = text;
}

function chooser(label, options, value, changed) {
  const all = () => [...document.querySelectorAll("#main .choice select")];
  const select = h(
    "select",
    {
      onchange: () => {
        const place = all().indexOf(select);
        changed(select.value);
        if (!select.isConnected && all()[place]) all()[place].focus(); // it was made anew: the keyboard stays there
      },
    },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
  );
  return h("label", { class: "choice" }, h("span", {}, label), select);
}

function command(text) {
  const copied = h(
    "button",
    {
      type: "button",
      class: "small",
      onclick: async () => {
        try {
          await navigator.clipboard.writeText(text);
          copied.textContent = "copied";
        } catch {
          const range = document.createRange();
          range.selectNodeContents(code);
          getSelection().removeAllRanges();
          getSelection().addRange(range);
          copied.textContent = "selected";
        }
        say(`command ${copied.textContent}`);
      },
    },
    "copy",
  );
  const code = h("code", { tabindex: "0" }, text);
  return h("div", { class: "command" }, code, copied);
}

const commands = (texts) => (texts || []).map(command);
const scrolled = (label, node) =>
  h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, node);
const runLink = (id, text) => h("a", { href: `#run/${encodeURIComponent(id)}` }, text || id.slice(0, 8));
const facts = (pairs) =>
  h(
    "dl",
    { class: "facts" },
    pairs
      .filter(([, value]) => ![null, undefined, "", false].includes(value))
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );

function marksOf(marks) {
  return marks
    ? h("sup", { title: [...marks].map((mark) => data.marks[mark]).join("; ") }, [...marks].join(","))
    : null;
}

// A table of plain rows whose headings sort: columns are {label, of(row) -> text or node, by(row) -> number or text}. Of more
// than `state.most` rows the others are shown when asked for.
function sortable(label, columns, rows, state, sorted) {
  const body = h("tbody", {});
  const headings = columns.map((column, place) =>
    h(
      "th",
      { scope: "col", class: column.class },
      column.by
        ? h(
            "button",
            {
              type: "button",
              class: "sort",
              onclick: () => {
                state.down = state.column === place ? !state.down : Boolean(column.down);
                state.column = place;
                fill();
                if (sorted) sorted();
                say(`sorted by ${column.label}, ${state.down ? "largest" : "smallest"} first`);
              },
            },
            column.label,
          )
        : column.label || h("span", { class: "unseen" }, column.hidden),
      column.below,
    ),
  );
  function fill() {
    const column = columns[state.column];
    const order = column ? [...rows].sort((a, b) => compared(column.by(a), column.by(b), state.down)) : rows;
    headings.forEach((heading, place) => {
      if (place === state.column) heading.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    });
    more.hidden = !(order.length > state.most);
    body.replaceChildren(
      ...order.slice(0, more.hidden ? order.length : state.most).map((row) =>
        h(
          "tr",
          { class: row.class },
          columns.map((column, place) =>
            h(place === 0 ? "th" : "td", { scope: place === 0 ? "row" : null, class: column.class }, column.of(row)),
          ),
        ),
      ),
    );
  }
  const more = h(
    "button",
    {
      type: "button",
      class: "small",
      onclick: () => {
        state.most = Infinity;
        fill();
      },
    },
    `show all ${plural(rows.length, "row")}`,
  );
  fill();
  return h("div", {}, scrolled(label, h("table", {}, h("thead", {}, h("tr", {}, headings)), body)), more);
}

// What has no value is last, whatever the direction.
function compared(one, other, down) {
  const missing = (value) => value === null || value === undefined || value === "";
  if (missing(one) || missing(other)) return missing(one) - missing(other);
  const order =
    typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other), "en");
  return down ? -order : order;
}
