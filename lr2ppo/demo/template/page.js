// Highlight the label under the pointer everywhere; for a cell of the matrix, its row and column.
const mark = (event) => {
  const under = event.target.closest("[data-key]");
  for (const old of element.querySelectorAll(".hot")) old.classList.remove("hot");
  if (event.type === "mouseleave" || !under) return;
  for (const key of [under.dataset.key, under.dataset.column]) {
    if (key === undefined) continue;
    for (const one of element.querySelectorAll(`li[data-key="${key}"], path[data-key="${key}"], th[data-key="${key}"]`))
      one.classList.add("hot");
  }
};
element.addEventListener("mouseover", mark);
element.addEventListener("mouseleave", mark);
// On a narrow screen the result is far below the button.
watch("value", () => {
  if (element.getBoundingClientRect().top > window.innerHeight / 2) element.scrollIntoView({ behavior: "smooth" });
});
