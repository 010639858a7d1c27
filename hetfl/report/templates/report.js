"use strict";
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const make = (tag, text = "", options = {}) => Object.assign(document.createElement(tag), {textContent: text}, options);

  // Tables: a click on the heading of a column sorts the rows by it.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (one, other) =>
    typeof one === typeof other
      ? typeof one === "number" ? one - other : one.localeCompare(other, undefined, {numeric: true})
      : typeof one === "number" ? -1 : 1;
  for (const table of all("table")) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    all("thead th", table).forEach((head, column) => {
      const button = make("button", head.textContent, {type: "button", title: "sort by this column"});
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => compare(valueOf(a, column), valueOf(b, column)));
        body.append(...(down ? rows.reverse() : rows));
      });
    });
  }

  // Switches for groups and for single seeds, in all figures with lines.
  const groups = JSON.parse(document.body.dataset.groups);
  const off = {group: new Set(), seed: new Set()};
  const visible = (group, seed) =>
    !off.group.has(group) && (seed === "mean" || !off.seed.has(seed));
  const update = () => {
    for (const mark of all(".lines .mark")) {
      const [, group, seed] = mark.getAttribute("class").split(" ");
      const {name, seeds} = groups[Number(group.slice(1))];
      mark.style.display = visible(name, seed === "mean" ? seed : seeds[Number(seed.slice(1))]) ? "" : "none";
    }
  };
  const place = document.getElementById("switches");
  const switches = (title, kind, names) => {
    if (names.length < 2) return;
    const list = make("ul");
    names.forEach((name, i) => {
      const label = make("label"), box = make("input", "", {type: "checkbox", checked: true}), item = make("li");
      box.addEventListener("change", () => { off[kind][box.checked ? "delete" : "add"](name); update(); });
      label.append(box);
      if (kind === "group") {
        const square = make("i");
        square.style.background = `var(--c${i % {{ colours|length }}})`;
        label.append(square);
      }
      label.append(` ${name}`);
      item.append(label);
      list.append(item);
    });
    place.append(make("div", title), list);
  };
  switches("Groups", "group", groups.map((group) => group.name));
  switches("Thin lines: seeds", "seed", [...new Set(groups.flatMap((group) => group.seeds))]);

  // The value at the pointer, and the data of each figure with lines.
  const scaled = (value, [low, high], log) =>
    log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  for (const figure of all("figure[data-lines]")) {
    const {axes, lines, x, y} = JSON.parse(figure.dataset.lines);
    const svg = figure.querySelector("svg"), tip = make("div", "", {className: "tip", hidden: true});
    const points = lines.flatMap(({panel, group, seed, xs, ys}) => {
      const at = axes[panel];
      return xs.map((value, i) => ({
        group, seed, panel, x: value, y: ys[i],
        left: at.box[0] + (at.box[2] - at.box[0]) * scaled(value, at.x, at.log_x),
        top: at.box[3] - (at.box[3] - at.box[1]) * scaled(ys[i], at.y, at.log_y),
      }));
    });
    figure.append(tip);
    svg.addEventListener("pointerleave", () => { tip.hidden = true; });
    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect(), zoom = frame.width / svg.viewBox.baseVal.width;
      const left = (event.clientX - frame.left) / zoom, top = (event.clientY - frame.top) / zoom;
      let best = null, nearest = 14;
      for (const point of points) {
        const distance = Math.hypot(point.left - left, point.top - top) + (point.seed === "mean" ? 0 : 1);
        if (distance < nearest && visible(point.group, point.seed)) [best, nearest] = [point, distance];
      }
      tip.hidden = best === null;
      if (best === null) return;
      const seed = best.seed === "mean" ? "" : `, seed ${best.seed}`;
      const short = (value) => Number(value.toPrecision(3));
      tip.textContent = `${best.group}${seed}; ${y}: ${short(best.y)}; ${x}: ${short(best.x)}`;
      const outer = figure.getBoundingClientRect();
      const wanted = frame.left - outer.left + best.left * zoom + 10;
      tip.style.left = `${Math.max(0, Math.min(wanted, outer.width - tip.offsetWidth))}px`;
      tip.style.top = `${frame.top - outer.top + best.top * zoom - 34}px`;
    });
    const quoted = (text) => (/[",\n]/.test(text) ? `"${String(text).replaceAll('"', '""')}"` : text);
    const link = figure.querySelector(".data");
    link.addEventListener("click", () => {
      const rows = [["panel", "group", "seed", x, y]];
      for (const {panel, group, seed, xs, ys} of lines)
        xs.forEach((value, i) => rows.push([axes[panel].title, group, seed, value, ys[i]]));
      const text = rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
      link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
    });
  }
})();
