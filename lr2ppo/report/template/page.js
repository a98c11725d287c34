"use strict";
const ROW = 21, GAP = 54, FOUND_AT_MOST = 24;

const root = document.documentElement;
// A page opened from a file may have no access to storage.
const remembered = { get() { try { return localStorage.getItem("theme"); } catch { return null; } },
                     set(theme) { try { localStorage.setItem("theme", theme); } catch { } } };
if (remembered.get()) root.dataset.theme = remembered.get();
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remembered.set(root.dataset.theme);
});

// Set text as text, never as markup: labels and descriptions are untrusted.
function element(name, attributes = {}, ...children) {
  const svg = name === "svg" || name === "line";
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function column(clip, order, side) {
  const items = order.map(label => element("li",
    { class: `g${clip.grades[label]}`, title: `${clip.labels[label]}: grade ${clip.grades[label]}`, "data-label": label },
    clip.labels[label]));
  return element("ol", { class: side }, ...items);
}

function lines(clip) {
  const height = ROW * clip.labels.length;
  const svg = element("svg", { viewBox: `0 0 ${GAP} ${height}`, height, "aria-hidden": "true" });
  const right = new Map(clip.after.map((label, rank) => [label, rank]));
  // Relevant labels last, on top of the others.
  const ranked = clip.before.map((label, rank) => [label, rank]).sort((a, b) => clip.grades[a[0]] - clip.grades[b[0]]);
  for (const [label, rank] of ranked)
    svg.append(element("line", { x1: 6, y1: ROW * (rank + 0.5), x2: GAP - 6, y2: ROW * (right.get(label) + 0.5),
                                 class: `g${clip.grades[label]}`, "data-label": label }));
  return svg;
}

function quality(clip) {
  if (clip.ndcg_before === null) return element("span", {}, `NDCG ${clip.ndcg_after.toFixed(2)}`);
  const gain = clip.ndcg_after - clip.ndcg_before;
  const text = `NDCG ${clip.ndcg_before.toFixed(2)} → ${clip.ndcg_after.toFixed(2)}`;
  return element("span", { class: gain > 0 ? "up" : gain < 0 ? "down" : "" }, text);
}

function card(clip, names) {
  const orders = element("div", { class: "orders" },
    element("div", { class: "name left", title: names.before }, names.before), element("div"),
    element("div", { class: "name", title: names.after }, names.after),
    column(clip, clip.before, "left"), lines(clip), column(clip, clip.after, "right"));
  orders.addEventListener("mouseover", event => {
    const label = event.target.dataset.label;
    for (const part of orders.querySelectorAll("[data-label]")) part.classList.toggle("hot", part.dataset.label === label);
  });
  const made = element("article", { class: "clip" },
    element("h4", {}, element("span", {}, clip.id), quality(clip)));
  if (clip.description) made.append(element("p", { class: "muted" }, clip.description));
  if (clip.frames.length) {
    const images = clip.frames.map((frame, place) => element("img", { src: frame, alt: `frame ${place + 1} of ${clip.id}` }));
    made.append(element("div", { class: "frames" }, ...images));
  }
  made.append(orders);
  return made;
}

const data = document.getElementById("data");
if (data) {
  const { clips, groups, names } = JSON.parse(data.textContent);
  const shown = document.getElementById("shown"), found = document.getElementById("found");
  const texts = clips.map(clip => [clip.id, clip.description, ...clip.labels].join("\n").toLowerCase());
  const grid = places => element("div", { class: "clips" }, ...places.map(place => card(clips[place], names)));
  const show = words => {
    if (!words) {
      found.textContent = `${clips.length} clips`;
      shown.replaceChildren(...groups.filter(group => group.clips.length)
        .flatMap(group => [element("h3", {}, group.title), grid(group.clips)]));
      return;
    }
    const places = [...clips.keys()].filter(place => texts[place].includes(words));
    const more = places.length > FOUND_AT_MOST ? `, the first ${FOUND_AT_MOST} are shown` : "";
    found.textContent = `${places.length} of ${clips.length} clips${more}`;
    shown.replaceChildren(grid(places.slice(0, FOUND_AT_MOST)));
  };
  const search = document.getElementById("search");
  search.addEventListener("input", () => show(search.value.trim().toLowerCase()));
  show("");
}
