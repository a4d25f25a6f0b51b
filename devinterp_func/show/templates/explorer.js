"use strict";
{
  const live = "live" in document.documentElement.dataset;
  const files = live ? null : new Set((globalThis.PAGES ?? []).map(([, address]) => address));
  const go = (address) => { if (!files || files.has(address.slice(document.documentElement.dataset.root.length))) location.href = address; };
  const make = (tag, name, text = "") => Object.assign(document.createElement(tag), { className: name, textContent: text });

  // Search: "/" goes to the box.
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.matches("input, textarea, select")) return;
    event.preventDefault();
    document.querySelector(".search input")?.focus();
  });

  // Lines for the REPL: a button that copies them.
  for (const box of document.querySelectorAll(".python")) {
    const button = make("button", "copy", "copy");
    button.type = "button";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(box.querySelector("code").textContent);
      button.textContent = "copied";
    });
    if (navigator.clipboard) box.append(button);
  }

  // Courses: values where the pointer is, a click for the step, dragging for a span.
  const number = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString());
  for (const chart of document.querySelectorAll(".hover")) {
    const { axes, series, to, brush } = JSON.parse(chart.dataset.hover);
    const line = make("div", "line"), told = make("div", "told"), span = make("div", "brush");
    for (const part of [line, told, span]) { part.hidden = true; chart.append(part); }
    const drawings = [...chart.querySelectorAll("svg")];
    let from = null;
    const where = (event) => {
      const i = drawings.findIndex((drawing) => drawing.getClientRects().length);
      if (i < 0) return null;
      const box = drawings[i].getBoundingClientRect(), outer = chart.getBoundingClientRect(), { box: part, x } = axes[i];
      const [left, top, right, bottom] = [box.left + part[0] * box.width, box.top + part[1] * box.height, box.left + part[2] * box.width, box.top + part[3] * box.height];
      if (event.clientX < left || event.clientX > right || event.clientY < top || event.clientY > bottom) return null;
      const step = x[0] + ((event.clientX - left) / (right - left)) * (x[1] - x[0]);
      return { step, x: event.clientX - outer.left, top: top - outer.top, height: bottom - top, wide: outer.width };
    };
    const nearest = (steps, step) => steps.reduce((best, value, i) => (Math.abs(value - step) < Math.abs(steps[best] - step) ? i : best), 0);
    const values = (step) => {
      const [[first]] = Object.values(series);
      const at = first[nearest(first, step)];
      const parts = Object.entries(series).map(([name, [steps, all]]) => `${name} ${number(all[nearest(steps, step)])}`);
      return [at, `step ${number(at)}: ${parts.join(", ")}`];
    };
    chart.addEventListener("pointermove", (event) => {
      const place = where(event);
      for (const part of [line, told]) part.hidden = !place;
      if (!place) return;
      line.style.cssText = `left:${place.x}px;top:${place.top}px;height:${place.height}px`;
      told.textContent = values(place.step)[1];
      told.style.cssText = `top:${place.top}px;left:${Math.max(0, Math.min(place.x + 8, place.wide - told.offsetWidth))}px`;
      if (from && brush && live) {
        span.hidden = false;
        span.style.cssText = `left:${Math.min(from.x, place.x)}px;width:${Math.abs(place.x - from.x)}px;top:${place.top}px;height:${place.height}px`;
      }
    });
    chart.addEventListener("pointerleave", () => { line.hidden = told.hidden = span.hidden = true; from = null; });
    chart.addEventListener("pointerdown", (event) => { from = where(event); });
    chart.addEventListener("pointerup", (event) => {
      const place = where(event), began = from;
      from = null;
      if (!place || !began) return;
      const [start, stop] = [began.step, place.step].sort((a, b) => a - b);
      if (Math.abs(place.x - began.x) > 8 && brush && live) location.href = `${brush}?start=${Math.max(0, Math.floor(start))}&stop=${Math.ceil(stop)}`;
      else if (to) go(to.replace("{}", values(place.step)[0]));
    });
  }

  // Attention: a slider over the snapshots, a click on a word for where it attends to, a grid that tells its weights.
  const BLUE = [0, 114, 178];
  for (const box of document.querySelectorAll(".attention")) {
    const { steps, size, at, query } = JSON.parse(box.dataset.attention);
    const levels = Uint8Array.from(atob(box.dataset.levels), (letter) => letter.charCodeAt(0));
    const words = [...box.querySelectorAll("[data-place]")], told = box.querySelector(".told"), image = box.querySelector(".grid img");
    const slider = box.querySelector(".slider"), grid = document.createElement("canvas");
    const label = make("label", "", "before step "), output = make("output", ""), range = make("input", "");
    const state = { at, query };
    const level = (from, to) => levels[(state.at * size + from) * size + to];
    const share = (depth) => `${((depth / 255) ** 2 * 100).toFixed(1)} %`;
    Object.assign(range, { type: "range", min: 0, max: steps.length - 1, step: 1, value: at });
    Object.assign(grid, { width: size, height: size });
    grid.setAttribute("role", "img");
    grid.setAttribute("aria-label", image.alt);
    const draw = () => {
      output.textContent = steps[state.at].toLocaleString("en");
      range.setAttribute("aria-valuetext", `before step ${output.textContent}`);
      const row = words.map((word, place) => level(state.query, place));
      words.forEach((word, place) => {
        word.style.setProperty("--v", (row[place] / 255).toFixed(2));
        word.title = share(row[place]);
        word.classList.toggle("query", place === state.query);
      });
      const best = [...row.keys()].sort((a, b) => row[b] - row[a] || a - b).slice(0, 3);
      const name = (place) => `“${words[place].textContent}”`;
      told.textContent = `From ${name(state.query)}, word ${state.query + 1}: ${best.map((place) => `${name(place)} ${share(row[place])}`).join(", ")}`;
      const pixels = new ImageData(size, size);
      for (let i = 0; i < size * size; i += 1) pixels.data.set([...BLUE, levels[state.at * size * size + i]], 4 * i);
      grid.getContext("2d").putImageData(pixels, 0, 0);
    };
    const attend = (place) => { state.query = place; draw(); };
    words.forEach((word, place) => {
      const link = word.querySelector("a");
      const button = link ?? word;
      if (!link) { word.tabIndex = 0; word.setAttribute("role", "button"); }
      button.addEventListener("click", (event) => { event.preventDefault(); attend(place); });
      if (!link) word.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); attend(place); } });
    });
    range.addEventListener("input", () => { state.at = Number(range.value); draw(); });
    const cell = (event) => {
      const { left, top, width, height } = grid.getBoundingClientRect();
      return [((event.clientY - top) / height), ((event.clientX - left) / width)].map((part) => Math.min(size - 1, Math.max(0, Math.floor(part * size))));
    };
    grid.addEventListener("pointermove", (event) => {
      const [from, to] = cell(event);
      grid.title = `“${words[from].textContent}” to “${words[to].textContent}”: ${share(level(from, to))}`;
    });
    grid.addEventListener("click", (event) => attend(cell(event)[0]));
    image.replaceWith(grid);
    label.append(output, range);
    slider.append(label);
    slider.hidden = steps.length < 2;
    box.querySelector(".snapshots").hidden = true;
    draw();
  }

  // Jobs: how far they are and what they print, as it comes.
  for (const box of document.querySelectorAll("[data-events]")) {
    const source = new EventSource(box.dataset.events);
    const said = box.querySelector(".said"), doing = box.querySelector(".doing");
    let known = 0;
    const tell = (event) => {
      const about = JSON.parse(event.data);
      if (!known) said.textContent = "";
      known += 1;
      if (about.said) { said.append(about.said); said.scrollTop = said.scrollHeight; }
      const bar = box.querySelector("progress");
      if (bar && about.total) { bar.max = about.total; bar.value = about.done; }
      if (about.total) doing.textContent = `${about.doing}: ${number(about.done)} of ${number(about.total)}`;
    };
    source.addEventListener("job", tell);
    source.addEventListener("over", (event) => { tell(event); source.close(); location.reload(); });
  }
}

// Suggestions under the search box: the server's where there is one, else those names of PAGES that fit.
for (const form of document.querySelectorAll(".search")) {
  const [box, list] = [form.querySelector("input"), form.querySelector(".found")];
  const { root = "", live } = document.documentElement.dataset;
  let [hits, chosen, asked] = [[], -1, 0];

  const inPages = (words) => {
    const wanted = words.toLowerCase();
    const rank = ([text]) => (text.toLowerCase() === wanted ? 0 : text.toLowerCase().startsWith(wanted) ? 1 : 2);
    const there = (globalThis.PAGES ?? []).filter(([text]) => text.toLowerCase().includes(wanted));
    return there.sort((one, other) => rank(one) - rank(other)).slice(0, 20);
  };
  const find = async (words) => {
    if (live === undefined) return inPages(words);
    const answer = await fetch(`${root}search.json?q=${encodeURIComponent(words.toWellFormed?.() ?? words)}`);
    return answer.ok ? answer.json() : [];
  };
  const close = () => {
    list.hidden = true;
    box.setAttribute("aria-expanded", "false");
    choose(-1);
  };
  const choose = (i) => {
    chosen = i;
    [...list.children].forEach((option, at) => option.setAttribute("aria-selected", String(at === i)));
    if (i < 0) return box.removeAttribute("aria-activedescendant");
    box.setAttribute("aria-activedescendant", list.children[i].id);
    list.children[i].scrollIntoView({ block: "nearest" });
  };
  const show = () => {
    list.replaceChildren(...hits.map(([text, address, group], i) => {
      const option = Object.assign(document.createElement("a"), { id: `found-${i}`, href: root + address, tabIndex: -1 });
      option.role = "option";
      option.append(text);
      if (group) option.append(Object.assign(document.createElement("small"), { textContent: ` ${group.toLowerCase()}` }));
      return option;
    }));
    list.hidden = !hits.length;
    box.setAttribute("aria-expanded", String(!list.hidden));
    choose(-1);
  };

  list.id = "found";
  list.role = "listbox";
  list.ariaLabel = "What may be meant";
  for (const [name, value] of Object.entries({ role: "combobox", "aria-expanded": "false", "aria-controls": list.id, "aria-autocomplete": "list" })) box.setAttribute(name, value);
  box.addEventListener("input", async () => {
    const mine = ++asked, words = box.value.trim();
    const found = words ? await find(words).catch(() => []) : [];
    if (mine !== asked) return; // an answer to what was typed before
    hits = found;
    show();
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !list.hidden) {
      event.preventDefault();
      close();
    } else if (["ArrowDown", "ArrowUp"].includes(event.key) && hits.length) {
      event.preventDefault();
      if (list.hidden) show();
      const by = event.key === "ArrowDown" ? 1 : -1, places = hits.length + 1; // one place is the box itself
      choose(((chosen + 1 + by + places) % places) - 1);
    } else if (event.key === "Enter" && chosen >= 0 && !list.hidden) {
      event.preventDefault();
      location.href = list.children[chosen].href;
    }
  });
  form.addEventListener("submit", (event) => {
    if (live !== undefined) return;
    event.preventDefault(); // there is no page of answers in a folder: the best is opened
    const [best] = inPages(box.value.trim());
    if (best) location.href = root + best[1];
  });
  form.addEventListener("focusout", (event) => { if (!form.contains(event.relatedTarget)) close(); });
}
