// What pages do beyond links and forms; all of them work without it.
"use strict";
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) return;
  if (e.key === "/") {
    const field = document.querySelector("form.filter input");
    if (field) { field.focus(); e.preventDefault(); }
  }
});
