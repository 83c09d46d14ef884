"""The console in Chromium: every page is gone through as a person would, on a story of real parts.

With `JOURNEYMAN_SCREENSHOTS=ops/docs/images` the pictures of `ops/docs/console.md` are taken anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ops import keys
from ops.records import Alias, CycleState, Metric
from ops.settings import KeySettings
from tests.fake_engine import FakeEngine
from tests.journeys.story import HOSTILE, Story
from tests.server.clients import node_clients
from tests.server.conftest import SharedPool, serving

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
SCREENSHOTS = os.environ.get("JOURNEYMAN_SCREENSHOTS")
PAGES = ("Now", "Learning", "Adapters", "Cycles", "Interactions", "Try it")
VISIBLE_NAMES = """() => [...document.querySelectorAll(
    'a, button, input, select, textarea, summary')]
  .filter((one) => one.type !== 'hidden' && one.checkVisibility())
  .filter((one) => !(one.innerText || one.ariaLabel || one.labels?.length
    || one.querySelector('text')))
  .map((one) => one.outerHTML)"""
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !one.checkVisibility() || one.closest('svg, .hidden, .skip')) continue;
    const [a, b] = [light(rgb(getComputedStyle(one).color)), light(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${one.outerHTML.slice(0, 120)}`);
  }
  return poor;
}"""


AXE = """async () => {
  const found = await axe.run(document);
  if (found.passes.length < 10) return ['the page was not looked at'];
  return found.violations.flatMap(
    (rule) => rule.nodes.map((node) => `${rule.id}: ${node.html}`));
}"""
"""Every rule of axe-core (WCAG 2 and best practices): what breaks it, by rule."""


@dataclass
class Browsing:
    """A page of the browser, and what it complained of."""

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", lambda said: self._note(said.type, said.text))
        self.page.on("pageerror", lambda error: self._note("error", str(error)))
        self.page.on("request", lambda asked: self._seen(asked.url))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def _seen(self, url: str) -> None:
        if not url.startswith(self.url + "/"):
            self.outside.append(url)

    def go(self, name: str) -> None:
        self.page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()
        assert self.heading() == name
        current = self.page.locator("nav [aria-current=page]")
        assert current.inner_text() == name

    def heading(self) -> str:
        return str(self.page.locator("h1").inner_text())

    def sound(self) -> None:
        """Assert what has to hold of every page."""
        assert self.page.evaluate(VISIBLE_NAMES) == []
        assert self.page.evaluate(CONTRAST) == []
        wide = "document.documentElement.scrollWidth - innerWidth"
        assert self.page.evaluate(wide) <= 0, "the page is wider than the window"

    def accessible(self, axe: str) -> None:
        """Assert that axe-core finds nothing wrong with the page."""
        self.page.evaluate(axe)
        assert self.page.evaluate(AXE) == []

    def shoot(self, name: str, *, height: int | None = None) -> None:
        if SCREENSHOTS is None:
            return
        self.page.mouse.move(0, 0)
        size = self.page.viewport_size
        tall = self.page.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(tall, height or tall)}
        path = Path(SCREENSHOTS) / f"console-{name}.png"
        self.page.screenshot(path=path, full_page=True, clip=clip)


@pytest.fixture(scope="module")
def told(pool: SharedPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A server with a past: requests, feedback, three cycles."""
    engine = FakeEngine()
    engine.start()
    with serving(engine, tmp_path_factory.mktemp("story"), checker=pool) as running:
        story = Story(running)
        story.import_feedback()
        story.ask(12)
        for skill, fill in ((0.6, b"\1"), (0.45, b"\2"), (0.95, b"\3")):
            cycle = story.learn(skill, fill=fill)
            assert cycle.state is CycleState.SUCCEEDED, cycle.error
            story.ask(12)
        story.spread()
        yield story
    engine.stop()


@pytest.fixture(scope="module")
def pool() -> Iterator[SharedPool]:
    shared = SharedPool()
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def axe() -> str:
    """The program text of axe-core, of the npm registry."""
    _, installed = node_clients()
    return (installed / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browsing(chromium: Any, told: Story, request: pytest.FixtureRequest) -> Iterator[Browsing]:
    how = {"viewport": {"width": 1200, "height": 800}, **getattr(request, "param", {})}
    context = chromium.new_context(**how)
    context.set_default_timeout(15_000)
    shown = Browsing(page=context.new_page(), url=told.server.url)
    shown.watch()
    shown.page.goto(f"{told.server.url}/console")
    yield shown
    context.close()
    assert shown.complaints == []
    assert shown.outside == []


def test_every_page_is_gone_through(browsing: Browsing, told: Story) -> None:
    page, server = browsing.page, told.server
    assert browsing.heading() == "Now"
    assert page.locator(".tile .big").first.inner_text() == "code@v3"
    browsing.shoot("now", height=1080)

    browsing.go("Learning")
    assert page.locator(".whisker").count() >= 4
    assert page.locator("#improvement-chart-title").count() == 1
    browsing.shoot("learning", height=1200)

    browsing.go("Adapters")
    browsing.shoot("adapters", height=900)
    page.get_by_role("link", name=re.compile("^v2 .*rejected$")).click()  # in the graph
    assert browsing.heading() == "code@v2"
    assert "REJECT" in page.get_by_label("The decision in words").inner_text()
    page.get_by_role("link", name="Task by task").click()
    assert browsing.heading() == "code@v1 and code@v2"
    assert page.get_by_role("region", name="Tasks").get_by_text("lost").count() > 0
    page.get_by_label("First").select_option("base model")
    page.get_by_label("Second").select_option("code@v3")
    page.get_by_role("button", name="Compare").click()
    assert browsing.heading() == "base model and code@v3"
    assert "in an examination of each" in page.locator("main").inner_text()
    assert page.get_by_role("region", name="Tasks").get_by_text("gained").count() > 0
    browsing.shoot("compare", height=900)

    browsing.go("Cycles")
    page.get_by_role("region", name="Cycles").get_by_role("link", name="ilf").first.click()
    assert page.locator(".stages .done").count() == 8
    browsing.shoot("cycle", height=1000)

    browsing.go("Interactions")
    page.get_by_label("Text in request or answer").fill("middle value")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("region", name="Interactions").get_by_role("link").first.click()
    assert browsing.heading() == "Interaction"
    pupils = page.locator("section", has=page.locator("#pupils"))
    assert "code@v1" in pupils.inner_text()  # which learned from it
    assert len(server.store.interactions()) > 40


def test_a_program_is_tried_and_what_is_said_teaches(browsing: Browsing, told: Story) -> None:
    page, store = browsing.page, told.server.store
    browsing.go("Try it")
    page.get_by_role("button", name="Add an example").click()
    page.get_by_label("Arguments of example 3").fill("[[[1, 9], [2, 3]]]")
    page.get_by_label("Expected value of example 3").fill("[[1, 9]]")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("3 of 3 checks passed").wait_for()
    browsing.sound()
    browsing.shoot("try", height=1100)
    row = store.interactions(limit=1)[0]
    assert row.verified is True
    page.get_by_role("button", name="Accept").click()
    page.get_by_text("The next cycle can learn from it").wait_for()
    page.get_by_label("What is wrong, and how to mend it").fill(HOSTILE)
    page.get_by_role("button", name="Send the comment").click()
    page.locator(".said").get_by_text(HOSTILE).wait_for()  # as text
    assert page.title() != "taken"
    said = {one.metric: one.value for one in store.feedback(row.id)}
    assert said == {Metric.ACCEPTED: True, Metric.COMMENT: HOSTILE}


def test_an_answer_shows_while_it_is_written(browsing: Browsing, told: Story) -> None:
    page, engine = browsing.page, told.server.engine
    browsing.go("Try it")
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("What the program should do").fill("Say what you know of intervals.")
    engine.token_delay_s = 0.3
    try:
        page.get_by_role("button", name="Ask").click()
        page.locator("pre.writing", has_text=re.compile(".")).wait_for()
        assert page.get_by_text("In the record").count() == 0
        assert "Several programs" in page.locator(".busy").inner_text()
    finally:
        engine.token_delay_s = 0.0
    page.get_by_role("link", name="In the record").wait_for()
    assert page.locator("pre.writing").count() == 0
    assert page.get_by_label("What the program should do").input_value().startswith("Say what")
    browsing.sound()
    page.get_by_role("button", name="Accept").click()
    page.get_by_text("The next cycle can learn from it").wait_for()


def test_what_is_refused_is_said_as_without_a_script(browsing: Browsing) -> None:
    page = browsing.page
    browsing.go("Try it")
    page.get_by_label("Arguments of example 1").fill("no JSON")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").get_by_text("this is no JSON").wait_for()
    refused = "Failed to load resource"  # what a browser says of every 400
    assert all(refused in words for words in browsing.complaints)
    browsing.complaints.clear()


def test_promotion_and_rollback_ask_first(browsing: Browsing, told: Story) -> None:
    page, server = browsing.page, told.server
    browsing.go("Adapters")
    page.get_by_role("link", name="Roll back").click()
    assert browsing.heading() == "Roll back?"
    browsing.sound()
    assert server.store.aliases()[Alias.CHAMPION] == 3  # a question changes nothing
    page.get_by_role("button", name="Roll back to code@v1").click()
    page.get_by_text("The registry points back").wait_for()
    assert server.store.aliases()[Alias.CHAMPION] == 1
    page.goto(f"{browsing.url}/console/adapters/3")
    page.get_by_role("link", name="Promote").click()
    page.get_by_label("Why, for its history").fill("it was better")
    page.get_by_role("button", name="Promote code@v3").click()
    page.get_by_text("The registry points at this version now").wait_for()
    server.until(lambda: server.http.get("/ready").json()["adapter"]["version"] == 3)
    page.reload()
    assert "It answers now" in page.locator("main").inner_text()
    assert "it was better" in page.locator(".timeline").inner_text()


def test_a_cycle_is_asked_for_and_its_page_lives(browsing: Browsing, told: Story) -> None:
    page, store = browsing.page, told.server.store
    browsing.go("Cycles")
    page.get_by_label("Recipe").select_option("gift4code")
    page.get_by_role("button", name="Queue it").click()
    page.get_by_text("The cycle is queued; an improver").wait_for()
    cycle = store.cycles(limit=1)[0]
    assert (cycle.recipe, cycle.trigger) == ("gift4code", "console")
    # An improver takes it: the page says so by itself, to screen readers too.
    store.move_cycle(cycle.id, (CycleState.QUEUED,), CycleState.RUNNING, stage="build")
    page.locator(".stages li.running").wait_for()
    page.locator("#live-status", has_text="running, stage build").wait_for(state="attached")
    page.get_by_role("button", name="Pause updates").click()
    page.wait_for_timeout(300)  # what was asked for before the click is still drawn
    store.pause_cycle(cycle.id)
    page.wait_for_timeout(3500)
    assert page.locator(".stages li.running").count() == 1
    page.get_by_role("button", name="Resume updates").click()
    page.locator("#live .badge.paused").wait_for()
    page.reload()
    page.get_by_role("link", name="Cancel").click()
    page.get_by_role("button", name="Cancel the cycle").click()
    page.get_by_text("The cycle is cancelled").wait_for()
    assert store.cycle(cycle.id).state is CycleState.CANCELLED


LOOKS = (
    {"color_scheme": "light"},
    {"color_scheme": "dark"},
    {"color_scheme": "light", "viewport": {"width": 360, "height": 740}},
    {"color_scheme": "dark", "java_script_enabled": False},
)


@pytest.mark.parametrize("browsing", LOOKS[:3], indirect=True, ids=["light", "dark", "narrow"])
def test_every_page_is_legible(browsing: Browsing, request: pytest.FixtureRequest) -> None:
    look = request.node.callspec.id
    for name in PAGES:
        browsing.go(name)
        browsing.sound()
        if (look, name) in (("dark", "Learning"), ("narrow", "Now")):
            browsing.shoot(f"{name.lower()}-{look}", height=1100)


@pytest.mark.parametrize("browsing", LOOKS[:2], indirect=True, ids=["light", "dark"])
def test_axe_finds_nothing_on_any_page(browsing: Browsing, axe: str) -> None:
    page = browsing.page
    for name in PAGES:
        browsing.go(name)
        browsing.accessible(axe)
    one = page.locator("main").get_by_role("link").first
    for name in ("Adapters", "Cycles", "Interactions"):
        browsing.go(name)
        one.click()
        browsing.accessible(axe)
    page.goto(f"{browsing.url}/console/rollback")
    browsing.accessible(axe)


@pytest.mark.parametrize("browsing", LOOKS[3:], indirect=True, ids=["no script"])
def test_without_a_script_the_forms_work(browsing: Browsing, told: Story) -> None:
    for name in PAGES:
        browsing.go(name)
    page = browsing.page
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("2 of 2 checks passed").wait_for()
    page.get_by_role("button", name="Reject").click()
    page.get_by_text("The next cycle can learn from it").wait_for()


def test_the_keyboard_reaches_everything_in_order(browsing: Browsing) -> None:
    page = browsing.page
    page.goto(f"{browsing.url}/console/cycles")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "recipe"
    page.goto(f"{browsing.url}/console/try")
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], button, input:not([type=hidden]), select, "
        'textarea, summary, [tabindex="0"]\')].filter((one) => one.checkVisibility()).length'
    )
    seen = []
    for _ in range(wanted):
        page.keyboard.press("Tab")
        place = "[...document.querySelectorAll('*')].indexOf(document.activeElement)"
        seen.append(page.evaluate(place))
    assert seen == sorted(seen), "the order of focus is the order of the page"
    assert len(set(seen)) == wanted
    shown = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert shown != "none"


def test_one_signs_in_with_a_key_and_is_sent_back_when_it_is_revoked(
    chromium: Any, pool: SharedPool, tmp_path: Path
) -> None:
    engine = FakeEngine()
    engine.start()
    digest = hashlib.sha256(b"jm-configured").hexdigest()
    boss = KeySettings(name="boss", sha256=digest, scopes=("admin",))
    deputy = keys.make("deputy", created_by="test", scopes=["admin"])
    with serving(engine, tmp_path, checker=pool, keys=(boss,)) as server:
        server.store.add_key(deputy.key)
        context = chromium.new_context()
        shown = Browsing(page=context.new_page(), url=server.url)
        page = shown.page
        page.goto(f"{server.url}/")
        assert shown.heading() == "Sign in"
        shown.sound()
        page.keyboard.type("jm-wrong")  # the field has the focus
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text("not known").wait_for()
        shown.watch()
        page.get_by_label("Admin key").fill(deputy.secret)
        page.get_by_role("button", name="Sign in").click()
        page.locator("h1", has_text="Now").wait_for()
        assert page.evaluate("document.cookie") == ""  # no script sees the session
        server.store.revoke_key("deputy")
        page.locator("h1", has_text="Sign in").wait_for()  # the live part goes there by itself
        assert page.url.endswith("/console/sign-in?next=/console")
        page.get_by_label("Admin key").fill("jm-configured")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Sign out").click()
        page.get_by_text("You are signed out").wait_for()
        context.close()
    engine.stop()
    assert shown.complaints == []
    assert shown.outside == []


def test_a_live_part_waits_while_somebody_is_at_it(browsing: Browsing, told: Story) -> None:
    page, server = browsing.page, told.server
    link = page.get_by_role("region", name="Interactions").get_by_role("link").first
    link.focus()
    before = link.inner_text()
    server.chat(messages=[{"role": "user", "content": "A brand new question."}])
    page.wait_for_timeout(6000)
    assert link.inner_text() == before
    page.evaluate("document.activeElement.blur()")
    page.get_by_text("A brand new question.").wait_for()
