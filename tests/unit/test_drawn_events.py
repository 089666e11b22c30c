"""Whatever class an event has: what is accepted comes back equal and of the same types."""

from hypothesis import HealthCheck, given, settings

from tests.unit.drawn_events import CONVERTERS, Drawn, check, drawn
from triobus._events import EventCodec


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(drawn())
def test_what_is_accepted_comes_back_equal_and_of_the_same_types(example: Drawn) -> None:
    check(example, lambda: EventCodec(converters=CONVERTERS))
