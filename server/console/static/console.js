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
// The playground: what is written shows while it is written, and then as the page would show it.
// Whatever goes wrong before it begins, the form is sent as it is without a script.
const events = async function* (response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
    }
  }
};

const show = (section, error) => {
  const words = document.createElement("p");
  words.className = "alarm";
  words.setAttribute("role", "alert");
  words.textContent = error;
  section.append(words);
};

const ask = async (form) => {
  const body = new URLSearchParams(new FormData(form));
  const headers = {accept: "text/event-stream"};
  const response = await fetch(form.action, {method: "POST", body, headers}).catch(() => null);
  if (!response?.headers.get("content-type")?.startsWith("text/event-stream")) {
    form.submit();
    return;
  }
  const id = response.headers.get("x-journeyman-interaction-id");
  const section = document.getElementById("answered");
  const written = document.createElement("pre");
  written.className = "writing";
  section.querySelectorAll(":scope > :not(h2)").forEach((one) => one.remove());
  section.append(written);
  try {
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      written.append(event.choices?.[0]?.delta?.content ?? "");
    }
    const page = await fetch(`${form.action}?id=${encodeURIComponent(id)}`);
    const whole = new DOMParser().parseFromString(await page.text(), "text/html");
    section.replaceChildren(...whole.getElementById("answered").children);
  } catch (error) {
    show(section, `The answer broke off: ${error.message}`);
  }
  delete form.dataset.sent;
  form.removeAttribute("aria-busy");
  form.querySelector(".busy").textContent = "";
};

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || !("live" in form.dataset) || event.submitter?.name) return;
  event.preventDefault();
  ask(form);
});

// Back from the cache of the browser, a form may be sent again.
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    form.removeAttribute("aria-busy");
  }
});
