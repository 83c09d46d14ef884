"""Where the marks of a chart go, and the interval of a share: numbers in, places out.

Templates draw what is returned here as SVG (`charts.html`), with a title and a table that says the
same. Places are in a chart's own units, `WIDTH` wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import ceil, floor, log10, sqrt

WIDTH = 720
HEIGHT = 210
LEFT, RIGHT, TOP, BOTTOM = 48, 24, 12, 28
Z95 = 1.959964
"""The normal quantile of a 95 % interval."""


def wilson(solved: int, tasks: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score, which also holds for few tasks.

    Returns:
        Low and high; (0, 1) where there are no tasks.
    """
    if tasks <= 0:
        return 0.0, 1.0
    p, z2 = solved / tasks, Z95**2
    middle = (p + z2 / (2 * tasks)) / (1 + z2 / tasks)
    half = Z95 / (1 + z2 / tasks) * sqrt(p * (1 - p) / tasks + z2 / (4 * tasks**2))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a bar."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar, its parts stacked from below."""

    x: float
    width: float
    title: str
    blocks: list[Block]


@dataclass(frozen=True, kw_only=True)
class Whisker:
    """A share with its interval."""

    x: float
    y: float
    low: float
    high: float
    kind: str
    label: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series over time, as the points of a polyline."""

    kind: str
    points: str
    last: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Places of everything in a chart."""

    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    base: float = HEIGHT - BOTTOM
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    whiskers: list[Whisker] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    path: str = ""
    """Points of a line that joins some of the whiskers."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A share to be drawn. `joined`: a line leads through it."""

    label: str
    kind: str
    title: str
    solved: int
    tasks: int
    joined: bool = False

    @property
    def share(self) -> float:
        """The share."""
        return self.solved / self.tasks if self.tasks else 0.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """A version in the lineage: `parent` is what it was measured against, None the base model."""

    version: int
    parent: int | None
    kind: str
    label: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A node with its place."""

    node: Node
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The lineage, laid out from left to right."""

    width: float
    height: float
    nodes: list[Placed]
    edges: list[tuple[float, float, float, float, str]]


def bars(
    columns: Sequence[tuple[str, str, Mapping[str, int]]], *, every: int = 1, height: float = HEIGHT
) -> Chart:
    """Stacked bars.

    Args:
        columns: label on the axis, title, and the parts by kind, lowest first.
        every: of the labels only each so many is written.
        height: of the chart.
    """
    base, top = height - BOTTOM, _top(max((sum(c[2].values()) for c in columns), default=0))
    slot = (WIDTH - LEFT - RIGHT) / max(len(columns), 1)
    drawn, ticks = [], []
    for place, (label, title, parts) in enumerate(columns):
        x, y, blocks = LEFT + place * slot, base, []
        for kind, number in parts.items():
            part = number / top * (base - TOP)
            y -= part
            if number:
                blocks.append(Block(kind=kind, y=round(y, 1), height=round(part, 1)))
        width = max(slot * 0.8, 1.0)
        drawn.append(
            Bar(x=round(x + slot * 0.1, 1), width=round(width, 1), title=title, blocks=blocks)
        )
        if place % every == 0:
            ticks.append(Tick(at=round(x + slot / 2, 1), label=label))
    return Chart(height=height, base=base, bars=drawn, x_ticks=ticks, y_ticks=_y_ticks(top, base))


def whiskers(points: Sequence[Measured]) -> Chart:
    """Shares with their intervals, in the order given; a line joins those that are `joined`."""
    base = HEIGHT - BOTTOM
    slot = (WIDTH - LEFT - RIGHT) / max(len(points), 1)

    def y(value: float) -> float:
        return round(base - value * (base - TOP), 1)

    found, path, ticks = [], [], []
    every = ceil(len(points) / 12) if points else 1
    for place, point in enumerate(points):
        x = round(LEFT + (place + 0.5) * slot, 1)
        low, high = wilson(point.solved, point.tasks)
        found.append(
            Whisker(
                x=x,
                y=y(point.share),
                low=y(low),
                high=y(high),
                kind=point.kind,
                label=point.label,
                title=point.title,
            )
        )
        if point.joined:
            path.append(f"{x},{y(point.share)}")
        if place % every == 0:
            ticks.append(Tick(at=x, label=point.label))
    steps = [Tick(at=y(part / 4), label=f"{part * 25} %") for part in range(5)]
    return Chart(whiskers=found, path=" ".join(path), x_ticks=ticks, y_ticks=steps)


def lines(
    series: Mapping[str, Sequence[tuple[datetime, int]]], since: datetime, until: datetime
) -> Chart:
    """Totals over time, as steps: a total holds until the next one."""
    base = HEIGHT - BOTTOM
    top = _top(max((total for points in series.values() for _, total in points), default=0))
    span = max((until - since).total_seconds(), 1.0)

    def x(at: datetime) -> float:
        passed = min(max((at - since).total_seconds() / span, 0.0), 1.0)
        return round(LEFT + passed * (WIDTH - LEFT - RIGHT), 1)

    drawn = []
    for kind, points in series.items():
        corners, before = [], None
        for at, total in points:
            place = round(base - total / top * (base - TOP), 1)
            if before is not None:
                corners.append((x(at), before))
            corners.append((x(at), place))
            before = place
        if before is not None:
            corners.append((x(until), before))
            text = " ".join(f"{a},{b}" for a, b in corners)
            drawn.append(Line(kind=kind, points=text, last=corners[-1]))
    stops = [since + (until - since) * part / 4 for part in range(5)]
    ticks = [Tick(at=x(stop), label=stop.strftime("%d %b")) for stop in stops]
    return Chart(lines=drawn, x_ticks=ticks, y_ticks=_y_ticks(top, base))


STEP_X, STEP_Y, MARGIN = 112.0, 74.0, 56.0


def lineage(nodes: Sequence[Node]) -> Graph:
    """Lay versions out: each right of its parent, the first child on its parent's line.

    Args:
        nodes: oldest first; a parent that is not among them counts as the base model.
    """
    known = {node.version for node in nodes}
    places: dict[int | None, tuple[int, int]] = {None: (0, 0)}
    taken: dict[int, int] = {0: 1}
    placed: list[Placed] = []
    edges = []
    for column, node in enumerate(nodes, 1):
        parent = node.parent if node.parent in known and node.parent in places else None
        row = places[parent][1]
        if node.kind == "rejected":
            row = max(row + 1, taken.get(column, 0))
        taken[column] = row + 1
        places[node.version] = (column, row)
        here = (MARGIN + column * STEP_X, MARGIN + row * STEP_Y)
        from_column, from_row = places[parent]
        there = (MARGIN + from_column * STEP_X, MARGIN + from_row * STEP_Y)
        placed.append(Placed(node=node, x=here[0], y=here[1]))
        edges.append((*there, *here, node.kind))
    deepest = max((row for _, row in places.values()), default=0)
    return Graph(
        width=2 * MARGIN + len(nodes) * STEP_X,
        height=2 * MARGIN + deepest * STEP_Y,
        nodes=placed,
        edges=edges,
    )


def _top(most: float) -> float:
    """The end of an axis whose four steps are whole numbers, and round ones."""
    step = max(1, ceil(most / 4))
    power = int(10 ** floor(log10(step)))
    rounds = (factor * power for factor in (1, 2, 3, 5, 10))
    return 4.0 * next(whole for whole in rounds if whole >= step)


def _y_ticks(top: float, base: float) -> list[Tick]:
    return [
        Tick(at=round(base - part / 4 * (base - TOP), 1), label=f"{top * part / 4:,.4g}")
        for part in range(5)
    ]
