"""`/docs`: the OpenAPI document as a page, without anything from elsewhere.

FastAPI's own page loads its program from a public host; a self-hosted server has to explain
itself on a machine that reaches nothing.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

router = APIRouter()

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Journeyman API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
details{border:1px solid #ddd;border-radius:6px;margin:.4rem 0;padding:.4rem .8rem}
summary{cursor:pointer} code,pre{font:13px/1.4 ui-monospace,monospace}
pre{background:#f6f6f6;padding:.6rem;overflow:auto;max-height:30rem}
.m{display:inline-block;min-width:4.5rem;font-weight:600} .d{color:#666}
@media (prefers-color-scheme:dark){body{background:#161616;color:#ddd}
details{border-color:#444} pre{background:#222} .d{color:#999}}
</style></head><body>
<h1>Journeyman API</h1>
<p>The document itself: <a href="openapi.json">openapi.json</a>.</p><main></main>
<script>
const add = (parent, tag, text, cls) => {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  if (cls) node.className = cls;
  return parent.appendChild(node);
};
fetch("openapi.json").then(r => r.json()).then(doc => {
  const main = document.querySelector("main"), groups = {};
  for (const [path, methods] of Object.entries(doc.paths))
    for (const [method, op] of Object.entries(methods))
      (groups[(op.tags || ["other"])[0]] ||= []).push([path, method, op]);
  for (const [tag, ops] of Object.entries(groups)) {
    add(main, "h2", tag);
    for (const [path, method, op] of ops) {
      const box = add(main, "details"), head = add(box, "summary");
      add(head, "span", method.toUpperCase(), "m");
      add(head, "code", path);
      add(head, "span", " " + (op.summary || ""), "d");
      if (op.description) add(box, "p", op.description);
      for (const [title, part] of [["Parameters", op.parameters],
          ["Request", op.requestBody], ["Responses", op.responses]])
        if (part) { add(box, "h4", title); add(box, "pre", JSON.stringify(part, null, 2)); }
    }
  }
  add(main, "h2", "schemas");
  for (const [name, schema] of Object.entries((doc.components || {}).schemas || {})) {
    const box = add(main, "details");
    add(add(box, "summary"), "code", name);
    add(box, "pre", JSON.stringify(schema, null, 2));
  }
});
</script></body></html>
"""
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)


@router.get("/docs", include_in_schema=False)
async def page() -> Response:
    """Return the page."""
    return HTMLResponse(_PAGE, headers={"content-security-policy": _POLICY})
