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
    htmx.ajax("POST", "/handlers/" + row.dataset.id + "/move", { values, target: "#handlers", select: "#handlers", selectOOB: "#notice", swap: "outerHTML" });
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

// What refreshes itself rests while nobody looks, while something in it has the focus or is
// chosen, and while the server is away: it then asks again.
document.addEventListener("htmx:beforeRequest", (e) => {
  const elt = e.detail.elt;
  if (!/^every/.test(elt.getAttribute("hx-trigger") || "")) return;
  if (document.hidden || (elt !== document.activeElement && elt.contains(document.activeElement)) || elt.querySelector("input:checked")) e.preventDefault();
});

// Events as they come.
{
  const list = document.getElementById("live");
  const most = 200;
  if (list) {
    const state = document.getElementById("live-state"), pause = document.getElementById("live-pause");
    const names = JSON.parse(list.dataset.names);
    let paused = false, waiting = [], seen = 0, missed = 0;
    const say = () => {
      state.textContent = (paused ? "paused, " + waiting.length + " wait" : "watching") + ", " + seen + " so far" + (missed ? ", " + missed + " were too many to show" : "");
    };
    const cell = (row, label, content) => {
      const td = row.insertCell();
      td.dataset.l = label;
      td.append(content);
      return td;
    };
    const link = (href, text) => {
      const a = document.createElement("a");
      a.href = href;
      a.textContent = text;
      return a;
    };
    const show = (e) => {
      const row = list.insertRow(0);
      cell(row, "", e.commit_time.replace("T", " ").slice(0, 19)).className = "nowrap";
      cell(row, "", e.event);
      cell(row, "Object ID", e.object);
      cell(row, "Client", link("/clients/" + encodeURIComponent(e.lane), e.lane));
      cell(row, "Handlers", (e.handlers || []).map((id) => names[id] || id).join(", ") || "none");
      const details = document.createElement("details"), summary = document.createElement("summary"), pre = document.createElement("pre");
      summary.textContent = "show";
      pre.tabIndex = 0;
      pre.textContent = JSON.stringify(e.payload, null, 2);
      details.append(summary, pre);
      cell(row, "Payload", details);
      while (list.rows.length > most) list.deleteRow(-1);
    };
    const source = new EventSource(list.dataset.source);
    source.onopen = say;
    source.onmessage = (message) => {
      const e = JSON.parse(message.data);
      missed += e.missed || 0;
      if (e.id) {
        seen++;
        if (!paused) show(e);
        else if (waiting.push(e) > most) waiting.shift();
      }
      say();
    };
    source.onerror = () => { state.textContent = source.readyState === EventSource.CLOSED ? "ended: load the page again" : "the connection is lost, trying again"; };
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", paused);
      pause.textContent = paused ? "Go on" : "Pause";
      if (!paused) { waiting.forEach(show); waiting = []; }
      say();
    });
  }
}
