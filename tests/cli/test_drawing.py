"""`triobus graph` and `triobus schema`: what leads to what, and what events look like."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cli.running import Here
from triobus._cli._drawing import Edge, Graph, as_dot, as_mermaid

BUS = "tests.cli.operated:shop"
ODD = 'a"]\n<script>;\u202e|{}'


def test_a_store_is_drawn_with_counts_times_and_failures(here: Here, store: str) -> None:
    code, stdout, stderr = here("graph", store)
    assert (code, stderr) == (0, "")
    assert re.sub(r"\d+ ms", "* ms", stdout).splitlines() == [
        f"%% {store}: the last 8 events",
        "flowchart LR",
        '    t0["operated.ordered<br/>4 events"]',
        '    t1["operated.paid<br/>4 events"]',
        '    h0(["mail: thank"])',
        '    t0 -->|"4, * ms"| t1',
        '    t1 -.->|"3 dead letters"| h0',
    ]


def test_causes_before_what_is_looked_at_are_found(here: Here, store: str) -> None:
    found = json.loads(here("graph", store, "--last", "1", "--json")[1])
    assert found["types"] == {"operated.ordered": 0, "operated.paid": 1}
    edges = [(edge["cause"], edge["effect"], edge["count"]) for edge in found["edges"]]
    assert edges[0] == ("operated.ordered", "operated.paid", 1)


def test_a_bus_is_drawn_with_its_handlers(here: Here) -> None:
    code, stdout, _ = here("graph", BUS)
    assert (code, stdout.splitlines()) == (
        0,
        [
            "flowchart LR",
            '    t0["operated.ordered"]',
            '    t1["operated.paid"]',
            '    h0(["default: pay"])',
            '    h1(["mail: thank"])',
            '    h2(["post: ship"])',
            "    t0 --> h0",
            "    t1 --> h1",
            "    t1 --> h2",
        ],
    )


def test_no_name_can_spoil_a_drawing() -> None:
    graph = Graph("title", {ODD: 1}, {(ODD, ODD): 1}, [Edge(ODD, None, (ODD, ODD), 0, 1)])
    for drawn, line_count in ((as_mermaid(graph), 5), (as_dot(graph), 7)):
        lines = drawn.splitlines()
        assert len(lines) == line_count
        assert {line.isprintable() for line in lines} == {True}
    node = as_mermaid(graph).splitlines()[2]
    assert re.fullmatch(r'    t0\["[\w .,:/#;-]+<br/>1 event"\]', node)
    assert as_dot(graph).splitlines()[3].startswith('    t0 [shape=box, label="a\\"]\\\\n<script>')


def test_svg_needs_graphviz(here: Here, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    code, stdout, stderr = here("graph", store, "--svg")
    assert (code, stdout, "needs Graphviz's program 'dot'" in stderr) == (2, "", True)


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_draws_it(here: Here, store: str) -> None:
    code, stdout, _ = here("graph", store, "--svg")
    assert (code, "</svg>" in stdout, "operated.paid" in stdout) == (0, True, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.db"], "there is no such file"),
        (["absent_module:bus"], "there is no module 'absent_module' here or installed"),
        (["json:dumps"], "cannot be called without arguments"),
        ([BUS, "--dot", "--json"], "give one of them"),
    ],
)
def test_what_cannot_be_drawn_is_said(here: Here, arguments: list[str], message: str) -> None:
    code, stdout, stderr = here("graph", *arguments)
    assert (code, stdout, message in stderr) == (2, "", True)


def test_the_schema_describes_every_event_that_a_handler_gets(here: Here) -> None:
    code, stdout, _ = here("schema", BUS)
    found = json.loads(stdout)
    assert code == 0
    assert found["oneOf"] == [
        {"title": "operated.ordered", "$ref": "#/$defs/Ordered"},
        {"title": "operated.paid", "$ref": "#/$defs/Paid"},
    ]
    ordered = found["$defs"]["Ordered"]
    assert ordered["required"] == ["order"]
    assert ordered["properties"]["quantity"] == {"type": "integer", "default": 1}
    assert {"event_id", "occurred_at", "correlation_id", "causation_id", "metadata"} < set(
        ordered["properties"]
    )


def test_asyncapi_has_a_channel_for_each_type_and_an_operation_for_each_handler(here: Here) -> None:
    found = json.loads(here("schema", BUS, "--asyncapi", "--title", "Shop")[1])
    assert (found["asyncapi"], found["info"]["title"]) == ("3.0.0", "Shop")
    assert sorted(found["channels"]) == ["operated.ordered", "operated.paid"]
    operations = {name: each["channel"]["$ref"] for name, each in found["operations"].items()}
    assert operations == {
        "default.pay.operated.ordered": "#/channels/operated.ordered",
        "mail.thank.operated.paid": "#/channels/operated.paid",
        "post.ship.operated.paid": "#/channels/operated.paid",
    }

    def resolved(reference: str) -> object:
        place = found
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        return place

    references = re.findall(r'"\$ref": "([^"]+)"', json.dumps(found))
    assert len(references) == 7
    assert None not in map(resolved, references)


def test_a_type_that_no_handler_gets_has_no_schema(here: Here) -> None:
    assert json.loads(here("schema", BUS, "--type", "operated.paid")[1])["$defs"].keys() == {"Paid"}
    code, _, stderr = here("schema", BUS, "--type", "absent")
    assert (code, "they get: operated.ordered, operated.paid" in stderr) == (2, True)


def test_fields_that_json_schema_does_not_know_are_said(
    here: Here, tmp_path: Path, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text(
        "import attrs, triobus\n"
        "@attrs.frozen\n"
        "class Odd(triobus.DomainEvent):\n"
        f"    event_type = '{name}.odd'\n"
        "    field: complex\n"
        "bus = triobus.EventBus()\n"
        "@bus.subscribe(Odd)\n"
        "async def handle(event): pass\n"
    )
    code, _, stderr = here("schema", f"{name}:bus")
    assert (code, f"Odd ('{name}.odd') has no schema" in stderr) == (2, True)
