"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const SVG = $("svg").namespaceURI;
  const many = data.runs.length > 1;
  const DASHES = ["", "6 4", "2 3", "9 3 2 3", "1 5", "12 4"];

  const make = (tag, attributes = {}, text = null) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    return node;
  };
  const draw = (tag, attributes = {}, text = null) => {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    return node;
  };
  const percent = (p) => {
    if (p === null) return "–";
    if (p > 0.999 && p < 1) return ">99.9 %";
    if (p > 0 && p < 0.001) return "<0.1 %";
    return (p === 0 || p === 1 ? (p * 100).toFixed(0) : (p * 100).toFixed(1)) + " %";
  };
  const figure = (v) => (v === null || v === undefined ? "–" : Number(v.toPrecision(4)).toString());
  const letter = (i) => (i < 26 ? String.fromCharCode(65 + i) : String(i + 1));

  // --- colours -----------------------------------------------------------------------------------------------

  const themes = { system: "light dark", light: "light", dark: "dark" };
  const setTheme = (name) => {
    document.documentElement.style.colorScheme = themes[name];
    $("theme").textContent = `Colours: ${name}`;
    $("theme").dataset.now = name;
  };
  $("theme").dataset.now = "system";
  $("theme").addEventListener("click", () => {
    const names = Object.keys(themes);
    setTheme(names[(names.indexOf($("theme").dataset.now) + 1) % names.length]);
  });

  // --- pictures ----------------------------------------------------------------------------------------------

  const pictures = data.pictures.map(([run, index, target, trial, agreement, readings], position) => ({
    run, index, target, trial, agreement, position,
    readings: readings.map(([network, reads, right, ofTarget, ofReading]) => ({ network, reads, right: !!right, ofTarget, ofReading })),
  }));
  for (const card of document.querySelectorAll(".card")) pictures[card.dataset.p].card = card;
  for (const p of pictures) {
    const teachers = p.readings.filter((r) => data.teachers[p.run].includes(r.network));
    p.allRight = teachers.every((r) => r.right);
    p.disagree = new Set(teachers.map((r) => r.reads)).size > 1;
    const said = teachers.map((r) => r.ofTarget);
    p.spread = (p.disagree ? 1 : 0) + (said.length ? Math.max(...said) - Math.min(...said) : 0);
  }
  const grid = $("grid");
  const MORE = 120;
  let limit = data.first, shown = [];

  const value = (id) => $(id).value;
  const ofNetwork = (p, network) => p.readings.filter((r) => network === "" || r.network === Number(network));
  const sureness = (p, network) => Math.min(...ofNetwork(p, network).map((r) => r.ofTarget));

  function chosen() {
    const [target, agreement, network, reading] = ["class", "agreement", "network", "reading"].map(value);
    const low = value("low") === "" ? 0 : Number(value("low")) / 100;
    const high = value("high") === "" ? 1 : Number(value("high")) / 100;
    const bounded = value("low") !== "" || value("high") !== "";
    return pictures.filter((p) => {
      if (target !== "" && p.target !== Number(target)) return false;
      if (agreement === "right" && !p.allRight) return false;
      if (agreement === "some" && p.allRight) return false;
      if (agreement === "disagree" && !p.disagree) return false;
      if (network === "" && reading === "" && !bounded) return true;
      return ofNetwork(p, network).some((r) =>
        (reading === "" || (reading === "right" ? r.right : reading === "wrong" ? !r.right : r.reads === Number(reading)))
        && r.ofTarget >= low && r.ofTarget <= high);
    });
  }

  function sorted(found) {
    const how = value("sort"), network = value("network");
    const keys = {
      made: () => 0,
      class: (p) => p.target,
      spread: (p) => -p.spread,
      conflict: (p) => p.agreement ?? 2,
      low: (p) => sureness(p, network),
      high: (p) => -sureness(p, network),
    };
    const key = new Map(found.map((p) => [p, keys[how](p)]));
    return found.sort((a, b) => key.get(a) - key.get(b) || a.position - b.position);
  }

  function layout() {
    shown = sorted(chosen());
    const beside = many && $("beside").checked;
    const visible = shown.slice(0, limit);
    grid.className = beside ? "beside" : "flat";
    const heads = document.querySelector(".heads");
    if (heads) heads.hidden = !beside;
    if (beside) {
      const groups = new Map();
      for (const p of shown) {
        if (!groups.has(p.target)) groups.set(p.target, data.runs.map(() => []));
        groups.get(p.target)[p.run].push(p);
      }
      const nodes = [];
      let before = 0;
      visible.length = 0;
      for (const [target, cells] of groups) {
        if (before >= limit) break;
        const group = make("div", { class: "group" });
        group.append(make("h3", {}, data.names[target]));
        cells.forEach((cell, run) => {
          const box = make("div", { class: "cell", role: "group", "aria-label": `${data.names[target]}, ${data.runs[run]}` });
          box.append(...(cell.length ? cell.map((p) => p.card) : [make("p", { class: "none" }, "none")]));
          group.append(box);
          visible.push(...cell);
        });
        before = visible.length;
        nodes.push(group);
      }
      grid.replaceChildren(...nodes);
    } else {
      grid.replaceChildren(...visible.map((p) => p.card));
    }
    for (const p of visible) p.card.hidden = false;
    const left = shown.length - visible.length;
    $("more").hidden = $("all").hidden = left <= 0;
    $("more").textContent = `Show ${Math.min(left, MORE)} more`;
    $("all").textContent = `Show all ${shown.length}`;
    const of = shown.length === pictures.length ? `${pictures.length} pictures` : `${shown.length} of ${pictures.length} pictures`;
    $("count").textContent = left > 0 ? `${of}, ${visible.length} shown` : of;
    shown.onPage = visible;
  }

  const again = () => { limit = data.first; layout(); };
  $("controls").addEventListener("input", again);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").addEventListener("reset", () => setTimeout(again));
  $("more").addEventListener("click", () => { limit += MORE; layout(); });
  $("all").addEventListener("click", () => { limit = Infinity; layout(); });

  // --- one picture, large ------------------------------------------------------------------------------------

  const dialog = $("dialog");
  let at = 0;
  function show(place) {
    const list = shown.onPage;
    at = (place + list.length) % list.length;
    const p = list[at], image = p.card.querySelector("img");
    $("d-title").textContent = data.names[p.target];
    $("d-image").src = image.src;
    $("d-image").alt = image.alt;
    $("d-image").className = image.className;
    const map = data.maps[p.run][p.index];
    $("d-conflict").hidden = !map;
    if (map) {
      $("d-map").src = map;
      $("d-map").width = image.width;
      $("d-map").height = image.height;
      $("d-map").alt = `Where the teachers' gradients agree, blue, and conflict, orange; mean cosine ${figure(p.agreement)}`;
      $("d-agreement").textContent = `Gradients agree (blue), conflict (orange); mean cosine ${figure(p.agreement)}`;
    }
    $("d-about").textContent = `${data.runs[p.run]}, image ${p.index}, trial ${p.trial}`;
    $("d-place").textContent = `${at + 1} of ${list.length}`;
    $("d-rows").replaceChildren(...p.readings.map((r) => {
      const row = make("tr"), head = make("th", { scope: "row" });
      head.append(make("span", { class: `chip c${r.network % 8}` }, letter(r.network)), " ", data.networks[r.network]);
      const read = make("td", { class: r.right ? "right" : "wrong" });
      read.append(make("i", { style: "font-style: normal" }, `${r.right ? "✓" : "✗"} ${data.names[r.reads]}`));
      row.append(head, read, make("td", {}, percent(r.ofReading)), make("td", {}, percent(r.ofTarget)));
      return row;
    }));
    if (!dialog.open) dialog.showModal();
  }
  grid.addEventListener("click", (event) => {
    const card = event.target.closest(".open")?.closest(".card");
    if (card) show(shown.onPage.indexOf(pictures[card.dataset.p]));
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at + 1);
  });
  dialog.addEventListener("close", () => shown.onPage[at]?.card.querySelector(".open").focus());
  $("d-close").addEventListener("click", () => dialog.close());
  $("d-back").addEventListener("click", () => show(at - 1));
  $("d-next").addEventListener("click", () => show(at + 1));

  // --- charts ------------------------------------------------------------------------------------------------

  // spec: title, series [{name, colour, dash, faint, x, y, hollow}], log, zero, share, lines [{x, text}], marks [{x, text}],
  //       labels [{x, y, text}], xName (x -> text)
  function chart(box, spec) {
    const left = 46, right = 10, top = 14, bottom = 20;
    const width = Math.max(220, box.clientWidth - 20), height = 210;
    const all = spec.series.flatMap((s) => s.y.filter((v) => v !== null));
    const log = spec.log && all.some((v) => v > 0);
    const usable = (v) => v !== null && (!log || v > 0);
    const values = all.filter(usable), xs = spec.series.flatMap((s) => s.x);
    let [low, high] = values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : [0, 1];
    if (spec.share) [low, high] = [0, 1];
    else if (!log && (spec.zero || low > 0 && low < high / 3)) low = 0;
    if (log) [low, high] = [Math.log10(low), Math.log10(high)];
    if (high - low < 1e-9) [low, high] = [low - (log ? 0.1 : Math.abs(low) * 0.1 || 0.1), high + (log ? 0.1 : Math.abs(high) * 0.1 || 0.1)];
    if (!spec.share) high += (high - low) * 0.04;
    const [first, last] = xs.length ? [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))] : [0, 1];
    const px = (x) => left + ((x - first) / (last - first || 1)) * (width - left - right);
    const py = (v) => top + (1 - ((log ? Math.log10(v) : v) - low) / (high - low)) * (height - top - bottom);

    box.querySelector("svg.plot")?.remove();
    const svg = draw("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0", "aria-label": spec.described });
    for (const v of ticks(low, high, log)) {
      const y = py(v);
      svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: y, y2: y }));
      svg.append(draw("text", { x: left - 5, y: y + 4, "text-anchor": "end" }, spec.share ? `${Math.round(v * 100)} %` : figure(v)));
    }
    for (const x of spec.xTicks ?? ticks(first, last, false)) {
      if (x < first || x > last) continue;
      svg.append(draw("text", { x: px(x), y: height - 5, "text-anchor": x === first ? "start" : "middle" }, x === first ? `${spec.unit} ${figure(x)}` : figure(x)));
    }
    for (const line of spec.lines ?? []) {
      if (line.x < first || line.x > last) continue;
      svg.append(draw("line", { class: "stage", x1: px(line.x), x2: px(line.x), y1: top, y2: height - bottom }));
      if (px(line.x) < width - 50) svg.append(draw("text", { x: px(line.x) + 3, y: top - 4 }, line.text));
    }
    for (const s of spec.series) {
      let path = "", pen = false;
      s.x.forEach((x, i) => {
        if (!usable(s.y[i])) { pen = false; return; }
        path += `${pen ? "L" : "M"}${px(x).toFixed(1)} ${py(s.y[i]).toFixed(1)}`;
        pen = true;
      });
      svg.append(draw("path", { d: path, fill: "none", stroke: s.colour, "stroke-width": s.faint ? 1.1 : 1.8, "stroke-dasharray": s.dash, "stroke-linejoin": "round", opacity: s.faint ? 0.6 : 1 }));
      if (s.x.length < 3 || s.dots) s.x.forEach((x, i) => {
        if (usable(s.y[i])) svg.append(draw("circle", { cx: px(x), cy: py(s.y[i]), r: 2, fill: s.colour }));
      });
    }
    for (const mark of spec.marks ?? []) {
      const x = px(Math.min(Math.max(mark.x, first), last));
      const node = draw("path", { class: "event", d: `M${x - 4} ${height - bottom + 1}h8l-4 -7z` });
      node.append(draw("title", {}, mark.text));
      svg.append(node);
    }
    for (const label of spec.labels ?? []) {
      if (!usable(label.y)) continue;
      const x = px(label.x), end = x > width * 0.6;
      svg.append(draw("text", { class: "worst-name", x: end ? x - 5 : x + 5, y: Math.max(top + 4, py(label.y) + label.shift), "text-anchor": end ? "end" : "start" }, label.text));
    }
    box.insertBefore(svg, box.querySelector(".key"));
    const places = [...new Set(xs)].sort((a, b) => a - b);
    let now = places.length - 1;
    const tip = box.querySelector(".tip") ?? box.appendChild(make("div", { class: "tip", role: "status" }));
    tip.hidden = true;
    const point = (i) => {
      now = Math.min(Math.max(i, 0), places.length - 1);
      const x = places[now];
      svg.querySelector(".cursor")?.remove();
      svg.append(draw("line", { class: "cursor", x1: px(x), x2: px(x), y1: top, y2: height - bottom }));
      const lines = [make("div", {}, spec.xName(x))];
      for (const s of spec.series) {
        const j = s.x.indexOf(x);
        if (j < 0) continue;
        const line = make("div");
        line.append(make("span", { style: `color: ${s.colour}` }, s.name), make("b", {}, spec.share ? percent(s.y[j]) : figure(s.y[j])));
        lines.push(line);
      }
      tip.replaceChildren(...lines.slice(0, 14));
      tip.hidden = false;
      if (px(x) > width / 2) { tip.style.left = ""; tip.style.right = `${width - px(x) + 20}px`; }
      else { tip.style.right = ""; tip.style.left = `${px(x) + 20}px`; }
    };
    const leave = () => { tip.hidden = true; svg.querySelector(".cursor")?.remove(); };
    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect(), x = ((event.clientX - frame.left) / frame.width) * width;
      let best = 0;
      places.forEach((v, i) => { if (Math.abs(px(v) - x) < Math.abs(px(places[best]) - x)) best = i; });
      if (places.length) point(best);
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      point(tip.hidden ? now : now + (event.key === "ArrowLeft" ? -1 : 1));
    });
  }

  function ticks(low, high, log) {
    if (log) {
      const found = [];
      const factors = high - low > 2 ? [1] : high - low > 0.7 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
      for (let e = Math.floor(low); e <= Math.ceil(high); e++)
        for (const m of factors) {
          const v = Number((m * 10 ** e).toPrecision(3));
          if (Math.log10(v) >= low && Math.log10(v) <= high) found.push(v);
        }
      const stride = Math.ceil(found.length / 6);
      return found.filter((_, i) => i % stride === 0);
    }
    const raw = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) found.push(Number(v.toPrecision(6)));
    return found;
  }

  function panel(parent, spec) {
    const box = make("div", { class: "chart" });
    box.append(make("h3", {}, spec.title));
    const key = make("div", { class: "key" }), named = new Set();
    for (const s of spec.series) {
      if (named.has(s.name)) continue;
      named.add(s.name);
      const entry = make("span", { title: s.name }), sample = draw("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" });
      sample.append(draw("line", { x1: 0, x2: 22, y1: 4, y2: 4, stroke: s.colour, "stroke-width": 2.5, "stroke-dasharray": s.dash }));
      entry.append(sample, s.name);
      key.append(entry);
    }
    if (spec.marks?.length) {
      const entry = make("span"), sample = draw("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" });
      sample.append(draw("path", { class: "event", d: "M7 8h8l-4 -7z" }));
      entry.append(sample, "event");
      key.append(entry);
    }
    box.append(key);
    parent.append(box);
    const again = () => chart(box, spec);
    let width = box.clientWidth;
    again();
    new ResizeObserver(() => { if (box.clientWidth !== width) { width = box.clientWidth; again(); } }).observe(box);
    return again;
  }

  const runSuffix = (run) => (many ? ` (${run + 1})` : "");
  const colourOf = (network) => `var(--c${Math.max(0, data.networks.indexOf(network)) % 8})`;

  function curvePanels() {
    const panels = new Map();
    data.curves.forEach((trials, run) => trials.forEach((trial) => {
      for (const [key, [x, y]] of Object.entries(trial.series)) {
        const cut = key.lastIndexOf("/"), network = cut < 0 ? null : key.slice(0, cut), term = cut < 0 ? key : key.slice(cut + 1);
        if (!panels.has(term)) panels.set(term, []);
        const name = (network ?? term) + runSuffix(run);
        const colour = network === null ? (many ? `var(--c${run % 8})` : "var(--ink)") : colourOf(network);
        panels.get(term).push({ name, colour, dash: DASHES[run % DASHES.length], faint: trials.length > 1, x, y });
      }
    }));
    const order = (term) => ({ loss: 0, accuracy: 8, lr: 9 }[term] ?? (term === "prior" ? 7 : 1));
    const lines = [], marks = [], seen = new Set();
    data.stages.forEach((begins, run) => begins.slice(1).forEach((x, i) => {
      if (seen.has(x)) return;
      seen.add(x);
      lines.push({ x, text: `stage ${i + 2}${many ? ` (${run + 1})` : ""}` });
    }));
    data.curves.forEach((trials, run) => trials.forEach((trial) => trial.events.forEach(([x, text]) => marks.push({ x, text: `step ${x}${runSuffix(run)}: ${text}` }))));
    const titles = { lr: "learning rate", loss: "loss in all", accuracy: "share read as the target" };
    return [...panels].sort((a, b) => order(a[0]) - order(b[0])).map(([term, series]) => {
      const ends = series.map((s) => {
        const known = s.y.filter((v) => v !== null);
        return `${s.name} from ${figure(known[0])} to ${figure(known[known.length - 1])}`;
      });
      const spec = {
        title: titles[term] ?? term, series, lines, marks, share: term === "accuracy", zero: term === "lr", unit: "step",
        get log() { return $("log").checked && term !== "accuracy" && term !== "lr"; },
        xName: (x) => `step ${x}`,
        described: `${titles[term] ?? term} over the steps: ${ends.slice(0, 12).join("; ")}. Arrow keys read values.`,
      };
      return panel($("curve-charts"), spec);
    });
  }

  function layerPanels() {
    const teachers = [...new Set(data.layers.flatMap((layers) => Object.keys(layers)))];
    for (const teacher of teachers) {
      const series = [], labels = [];
      let names = [];
      data.layers.forEach((layers, run) => {
        const rows = layers[teacher];
        if (!rows) return;
        if (rows.length > names.length) names = rows.map((row) => row[0]);
        const x = rows.map((_, i) => i), dash = DASHES[run % DASHES.length];
        series.push({ name: `mean${runSuffix(run)}`, colour: "var(--c0)", dash, dots: true, x, y: rows.map((row) => row[1]) });
        series.push({ name: `variance${runSuffix(run)}`, colour: "var(--c1)", dash, dots: true, x, y: rows.map((row) => row[2]) });
        if (run === 0 && rows.some((row) => row[3] !== null)) {
          for (const [at, name, colour] of [[3, "mean of real images", "var(--c0)"], [4, "variance of real images", "var(--c1)"]])
            series.push({ name, colour, dash: "1 5", dots: false, x, y: rows.map((row) => row[at]) });
        }
        const far = rows.map((row, i) => ({ x: i, y: Math.max(row[1] ?? 0, row[2] ?? 0), text: row[0], shift: -5 }));
        if (run === 0 || !data.layers[0][teacher]) labels.push(...far.sort((a, b) => b.y - a.y).slice(0, 3));
      });
      const kept = [];
      for (const label of labels) if (kept.every((other) => Math.abs(other.x - label.x) > names.length / 8 || Math.abs(other.y - label.y) > labels[0].y / 8)) kept.push(label);
      panel($("layer-charts"), {
        title: teacher, series, labels: kept, zero: true, unit: "layer",
        xName: (x) => `layer ${x}: ${names[x]}`,
        described: `Distances of ${names.length} layers of ${teacher}; furthest: ${labels.map((l) => `${l.text} ${figure(l.y)}`).join(", ")}. Arrow keys read values.`,
      });
    }
  }

  layout();
  const curves = curvePanels();
  $("log").addEventListener("change", () => curves.forEach((again) => again()));
  layerPanels();
  if ($("unlike")) {
    const only = () => $("settings-table").classList.toggle("only", $("unlike").checked);
    $("unlike").addEventListener("change", only);
    only();
  }
  document.documentElement.dataset.ready = "1";
})();
