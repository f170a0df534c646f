// What pages do beyond links and forms; all of them work without it.
"use strict";
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) return;
  if (e.key === "/") {
    const field = document.querySelector("form.filter input");
    if (field) { field.focus(); e.preventDefault(); }
  }
});

// Handlers are dragged by their grip. The arrows beside it do the same by keys.
{
  let row = null;
  const target = (e) => {
    const r = e.target.closest && e.target.closest("table[data-order] tr[data-id]");
    return r && r !== row ? r : null;
  };
  const below = (r, e) => { const b = r.getBoundingClientRect(); return e.clientY > b.top + b.height / 2; };
  const clear = () => document.querySelectorAll(".over-top,.over-bottom").forEach((r) => r.classList.remove("over-top", "over-bottom"));
  document.addEventListener("pointerdown", (e) => {
    const grip = e.target.closest && e.target.closest(".grip");
    if (grip) grip.closest("tr").draggable = true;
  });
  document.addEventListener("dragstart", (e) => {
    row = e.target.closest && e.target.closest("table[data-order] tr[draggable=true]");
    if (!row) return;
    row.classList.add("dragged");
    e.dataTransfer.effectAllowed = "move";
    e.dataTransfer.setData("text/plain", row.dataset.id);
  });
  document.addEventListener("dragover", (e) => {
    const r = row && target(e);
    if (!r) return;
    e.preventDefault();
    clear();
    r.classList.add(below(r, e) ? "over-bottom" : "over-top");
  });
  document.addEventListener("drop", (e) => {
    const r = row && target(e);
    if (!r) return;
    e.preventDefault();
    const values = { back: r.closest("table").dataset.order, [below(r, e) ? "after" : "before"]: r.dataset.id };
    htmx.ajax("POST", "/handlers/" + row.dataset.id + "/move", { values, target: "#handlers", select: "#handlers", swap: "outerHTML" });
  });
  document.addEventListener("dragend", () => {
    clear();
    if (row) { row.classList.remove("dragged"); row.draggable = false; }
    row = null;
  });
}

// An answer that says no is shown as well, and in place of the page.
document.addEventListener("htmx:beforeSwap", (e) => {
  if (e.detail.xhr.status >= 400 && /text\/html/.test(e.detail.xhr.getResponseHeader("Content-Type") || "")) {
    e.detail.shouldSwap = true;
    e.detail.isError = false;
    e.detail.target = document.getElementById("main");
    e.detail.selectOverride = "#main";
    e.detail.swapOverride = "outerHTML";
  }
});
