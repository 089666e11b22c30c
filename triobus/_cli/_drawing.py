"""A graph of types and handlers in Mermaid, in the language of Graphviz, and as SVG."""

import shutil
import subprocess
from collections.abc import Iterator

import attrs

from triobus._cli._messages import CommandError
from triobus._cli._output import counted
from triobus._text import escaped

_LONGEST = 80
"""How many characters of a name are drawn."""


@attrs.frozen
class Edge:
    """A type leads to another one, or to a handler."""

    cause: str
    effect: str | None
    handler: tuple[str, str] | None
    """Group and subscription."""
    count: int = 0
    """How many events led to one."""
    dead_letters: int = 0
    seconds: float | None = None
    """The median of the time between the two."""

    @property
    def label(self) -> str:
        """What is written beside it."""
        said = [f"{self.count:,}"] if self.count else []
        if self.seconds is not None:
            said.append(_time(self.seconds))
        if self.dead_letters:
            said.append(counted(self.dead_letters, "dead letter"))
        return ", ".join(said)


@attrs.define(eq=False)
class Graph:
    """Types, handlers and what leads to what."""

    title: str = ""
    types: dict[str, int | None] = attrs.field(factory=dict)
    """With how many events there are of each, if that is known."""
    handlers: dict[tuple[str, str], int] = attrs.field(factory=dict)
    """By group and subscription, with their dead letters."""
    edges: list[Edge] = attrs.field(factory=list)


def _time(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{max(seconds, 0) * 1000:.0f} ms"


def as_mermaid(graph: Graph) -> str:
    """Return a flowchart."""
    return "\n".join(_mermaid(graph))


def _mermaid(graph: Graph) -> Iterator[str]:
    if graph.title:
        yield f"%% {escaped(graph.title)}"
    yield "flowchart LR"
    types, handlers = _names(graph)
    for name, key in types.items():
        yield f'    {key}["{_in_mermaid(_of_type(graph, name, "<br/>"))}"]'
    for handler, key in handlers.items():
        yield f'    {key}(["{_in_mermaid(_of_handler(handler))}"])'
    for edge in graph.edges:
        label = f'|"{edge.label}"|' if edge.label else ""
        arrow = "-.->" if edge.dead_letters else "-->"
        yield f"    {types[edge.cause]} {arrow}{label} {_end(edge, types, handlers)}"


def as_dot(graph: Graph) -> str:
    """Return a digraph."""
    return "\n".join(_dot(graph))


def _dot(graph: Graph) -> Iterator[str]:
    yield "digraph triobus {"
    yield "    rankdir=LR;"
    yield '    node [fontname="sans-serif"]; edge [fontname="sans-serif"];'
    types, handlers = _names(graph)
    for name, key in types.items():
        yield f"    {key} [shape=box, label={_in_dot(_of_type(graph, name, chr(10)))}];"
    for handler, key in handlers.items():
        yield f"    {key} [shape=oval, label={_in_dot(_of_handler(handler))}];"
    for edge in graph.edges:
        style = ", style=dashed" if edge.dead_letters else ""
        end = _end(edge, types, handlers)
        yield f"    {types[edge.cause]} -> {end} [label={_in_dot(edge.label)}{style}];"
    yield "}"


def as_svg(graph: Graph) -> str:
    """Return what Graphviz draws. Raises `CommandError` where it is not installed."""
    program = shutil.which("dot")
    if program is None:
        raise CommandError("--svg needs Graphviz's program 'dot', which is not installed here")
    done = subprocess.run(
        [program, "-Tsvg"], input=as_dot(graph).encode(), capture_output=True, check=False
    )
    if done.returncode:
        raise CommandError(f"'dot' failed: {escaped(done.stderr.decode(errors='replace'))}")
    return done.stdout.decode()


def _names(graph: Graph) -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """Return names for nodes that no type and no handler can spoil."""
    return (
        {name: f"t{number}" for number, name in enumerate(graph.types)},
        {handler: f"h{number}" for number, handler in enumerate(graph.handlers)},
    )


def _end(edge: Edge, types: dict[str, str], handlers: dict[tuple[str, str], str]) -> str:
    return types[edge.effect] if edge.effect is not None else handlers[edge.handler or ("", "")]


def _of_type(graph: Graph, name: str, line_end: str) -> str:
    count = graph.types[name]
    shown = _short(name)
    return shown if count is None else f"{shown}{line_end}{counted(count, 'event')}"


def _of_handler(handler: tuple[str, str]) -> str:
    group, subscription = handler
    return f"{_short(group)}: {_short(subscription)}"


def _short(name: str) -> str:
    text = escaped(name)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _in_mermaid(text: str) -> str:
    """Return a text for between quotes, where Mermaid knows entities and a few tags."""
    parts = text.split("<br/>")
    return "<br/>".join(
        "".join(c if c.isalnum() or c in " .,:_-/" else f"#{ord(c)};" for c in part)
        for part in parts
    )


def _in_dot(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
