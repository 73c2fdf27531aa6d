"use strict";
// Draws the figures, fills the panel of a point, sorts and filters tables, switches the theme.
// Texts of data files are set as text only, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { figures, points } = data;
  const root = document.documentElement;
  const all = (selector, under = document) => [...under.querySelectorAll(selector)];
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const narrow = matchMedia("(max-width: 520px)");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map(); // element -> the figure it shows

  const themed = (figure) => {
    const copy = structuredClone(figure);
    const { layout } = copy;
    layout.font = { color: colour("--ink"), family: "system-ui, sans-serif", size: narrow.matches ? 11 : 13 };
    // The legend is below the chart, which grows by as many lines as it takes.
    const named = copy.data.filter((each) => each.type === "scatter").length;
    layout.showlegend = named > 0;
    layout.height += named ? 22 * Math.ceil(named / (narrow.matches ? 2 : 6)) : 0;
    for (const axis of [layout.xaxis, layout.yaxis]) {
      axis.gridcolor = colour("--grid");
      axis.linecolor = colour("--line");
    }
    layout.hoverlabel.bgcolor = colour("--panel");
    layout.hoverlabel.bordercolor = colour("--line");
    layout.hoverlabel.font = { color: colour("--ink"), size: 13 };
    for (const trace of copy.data.filter((each) => each.type === "heatmap")) {
      trace.colorscale = [[0, colour("--map-low")], [1, colour("--map-high")]];
    }
    return copy;
  };

  const draw = (element, figure) => {
    drawn.set(element, figure);
    const { data: traces, layout } = themed(figure);
    return Plotly.react(element, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
  };

  // The panel of a point.
  const show = (index) => {
    const panel = document.getElementById("point");
    if (!panel || !points[index]) return;
    const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
    const { name, pairs, command } = points[index];
    const list = document.createElement("dl");
    for (const [key, value] of pairs) list.append(make("dt", key), make("dd", value));
    panel.replaceChildren(make("h3", name), list);
    if (command) {
      const code = make("pre", command);
      code.tabIndex = 0;
      panel.append(code);
    }
    for (const row of all("#candidates tbody tr")) {
      row.classList.toggle("picked", row.dataset.candidate === String(index));
    }
  };

  const front = document.getElementById("front");
  const drawFront = () => {
    const figure = figures.front[document.getElementById("cost").value];
    return draw(front, figure);
  };
  const mark = (index) => {
    // Every trace but the front's line carries the number of the candidate of each point.
    for (const [curve, trace] of (front?.data ?? []).entries()) {
      const place = trace.customdata?.indexOf(index) ?? -1;
      if (place >= 0) Plotly.Fx.hover(front, [{ curveNumber: curve, pointNumber: place }]);
    }
  };
  const waiting = new Map(); // element -> draws what is in it, when it comes near the screen
  if (front) {
    waiting.set(front, () => drawFront().then(() => {
      const take = (event) => show(event.points[0].customdata);
      front.on("plotly_hover", take);
      front.on("plotly_click", take);
    }));
    document.getElementById("cost").addEventListener("change", drawFront);
    for (const button of all("#candidates .pick")) {
      button.addEventListener("click", () => {
        const index = Number(button.closest("tr").dataset.candidate);
        show(index);
        mark(index);
        if (!matchMedia("(min-width: 821px)").matches) document.getElementById("point").scrollIntoView({ block: "nearest" });
      });
    }
  }
  // Plans: one is shown at a time.
  const showPlan = (place) => {
    for (const part of all(".plan")) part.hidden = part.dataset.plan !== place;
    const part = document.querySelector(`.plan[data-plan="${place}"]`);
    const { map, tensors } = figures.plans[Number(place)];
    const drawing = [];
    const chart = part.querySelector(".map");
    if (chart) drawing.push(draw(chart, map));
    const select = part.querySelector(".tensor");
    if (select) {
      const drawTensor = () => draw(part.querySelector(".density"), tensors[Number(select.value)]);
      select.onchange = drawTensor;
      drawing.push(drawTensor());
    }
    return Promise.all(drawing);
  };
  const plan = document.getElementById("plan");
  if (plan) {
    plan.addEventListener("change", () => showPlan(plan.value));
    waiting.set(plan.closest("section"), () => showPlan(plan.value));
  }
  for (const name of ["predicted", "rates", "losses"]) {
    const element = document.getElementById(name);
    if (element) waiting.set(element, () => draw(element, figures[name]));
  }

  // Tables.
  const value = (row, column) => {
    const text = row.cells[column].dataset.value ?? row.cells[column].textContent;
    return text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true });
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const other = first === "descending" ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.setAttribute("aria-sort", each === head ? order : "none"));
      const sign = order === "ascending" ? 1 : -1;
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((x, y) => {
        const [a, b] = [value(x, column), value(y, column)];
        if (a === null || b === null) return (a === null) - (b === null); // what is not known comes last
        return sign * compare(a, b);
      }));
    }));
  }
  const filter = (table) => {
    const words = document.querySelector(`[data-table="${table.id}"]`).value.toLowerCase().split(/\s+/).filter(Boolean);
    const onlyFront = table.id === "candidates" && document.getElementById("only-front").checked;
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = `${row.textContent} ${row.dataset.words ?? ""}`.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || (onlyFront && !row.classList.contains("best"));
      shown += row.hidden ? 0 : 1;
    }
    document.querySelector(`[data-shown="${table.id}"]`).textContent = `${shown} of ${table.tBodies[0].rows.length}`;
  };
  for (const input of all("[data-table]")) {
    const table = document.getElementById(input.dataset.table);
    input.addEventListener("input", () => filter(table));
    if (table.id === "candidates") document.getElementById("only-front").addEventListener("change", () => filter(table));
    filter(table);
  }

  // The theme: the system's until somebody chooses.
  const button = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const repaint = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    for (const [element, figure] of drawn) draw(element, figure);
  };
  button.textContent = isDark() ? "Light" : "Dark";
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    repaint();
  });
  systemDark.addEventListener("change", repaint);

  // What is on the screen first; the rest when it is scrolled to, or printed.
  const drawNow = async (elements) => {
    for (const element of elements.filter((each) => waiting.has(each))) {
      const step = waiting.get(element);
      waiting.delete(element);
      watcher.unobserve(element);
      await step();
    }
    root.dataset.drawn ??= String(performance.now());
  };
  const watcher = new IntersectionObserver((entries) => {
    drawNow(entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target));
  }, { rootMargin: "300px" });
  for (const element of waiting.keys()) watcher.observe(element);
  if (!waiting.size) drawNow([]);
  addEventListener("beforeprint", () => drawNow([...waiting.keys()]));
})();
