// What the pages gain where there is a script: live parts wait while somebody reads them, changes
// are announced, and a form says that it works. Everything else works without.
"use strict";

let paused = false;
let said = "";

const live = () => document.getElementById("live");
const reading = (part) => {
  const selection = document.getSelection();
  return part.contains(document.activeElement)
    || (selection && !selection.isCollapsed && part.contains(selection.anchorNode));
};

// A live part is left alone while updates are paused, nobody looks, or somebody is at it.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.id === "live" && (paused || document.hidden || reading(event.target))) {
    event.preventDefault();
  }
});
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.target.id === "live" && reading(event.target)) event.detail.shouldSwap = false;
});

// Screen readers are told what changed, not that everything was drawn again.
document.addEventListener("htmx:afterSettle", () => {
  const words = live()?.dataset.status || "";
  if (words && words !== said) {
    if (said) document.getElementById("live-status").textContent = words;
    said = words;
  }
});

document.addEventListener("DOMContentLoaded", () => {
  said = live()?.dataset.status || "";
  const toggle = document.getElementById("live-toggle");
  if (toggle) {
    toggle.hidden = false;
    toggle.addEventListener("click", () => {
      paused = !paused;
      toggle.setAttribute("aria-pressed", String(paused));
      toggle.textContent = paused ? "Resume updates" : "Pause updates";
    });
  }
});

// A second click must not ask a second time.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  form.dataset.sent = "yes";
  form.setAttribute("aria-busy", "true");
  const note = form.querySelector(".busy");
  if (note && !event.submitter?.name) note.textContent = form.dataset.busy || "";
});
// Back from the cache of the browser, a form may be sent again.
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    form.removeAttribute("aria-busy");
  }
});
