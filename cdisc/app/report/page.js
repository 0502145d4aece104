// What a concept owns, one noise level or guidance at a time, and sections that open where a link leads.
for (const query of document.querySelectorAll(".query")) {
  const told = query.querySelector(".told"), silent = told?.textContent;
  let pinned = null;
  const show = (tile) => {
    for (const part of query.querySelectorAll("[data-concept]"))
      part.classList.toggle("on", part.dataset.concept === tile?.dataset.concept);
    query.classList.toggle("asking", tile !== null);
    told.textContent = tile?.dataset.told ?? silent;
  };
  for (const tile of query.querySelectorAll("button[data-concept]")) {
    tile.onpointerenter = tile.onfocus = () => show(tile);
    tile.onpointerleave = tile.onblur = () => show(pinned);
    tile.onclick = () => {
      pinned?.setAttribute("aria-pressed", false);
      pinned = pinned === tile ? null : tile;
      pinned?.setAttribute("aria-pressed", true);
      show(pinned);
    };
  }
}
for (const steps of document.querySelectorAll(".steps")) {
  const all = [...steps.querySelectorAll(".step")];
  const dial = document.createElement("input"), value = document.createElement("output"), box = document.createElement("label");
  Object.assign(dial, { type: "range", min: 0, max: all.length - 1 });
  dial.value = Math.max(0, all.findIndex((step) => "start" in step.dataset));
  box.className = "dial";
  box.append(steps.dataset.label, dial, value);
  const turn = () => {
    all.forEach((step, i) => (step.hidden = i !== +dial.value));
    const { step, method } = all[dial.value].dataset;
    value.textContent = step;
    dial.setAttribute("aria-valuetext", step);
    if (method)
      for (const mark of steps.parentNode.querySelectorAll("svg [data-method]"))
        mark.classList.toggle("on", mark.dataset.method === method);
  };
  dial.oninput = turn;
  steps.prepend(box);
  turn();
}
const list = document.querySelector("nav"), narrow = () => innerWidth < 1000;
const open = (hash) => {
  const aim = hash && document.getElementById(hash.slice(1));
  if (aim) aim.open = true;
};
list.onclick = ({ target }) => {
  const link = target.closest("a");
  open(link?.hash);
  if (link && narrow()) list.querySelector("details").open = false;
};
open(location.hash);
if (narrow()) list.querySelector("details").open = false;
