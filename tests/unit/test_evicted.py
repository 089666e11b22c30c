"""The core of evicted lines: nothing that is given up is forgotten, replays among it or not."""

from tests.events import Noted
from triobus import EventBus, MemoryEventStore
from triobus._durability.evicted import Evicted
from triobus._durability.lanes import StoredLanes


class Ignored:
    def handled(self, subscription, result): ...

    def failed(self, subscription, error): ...

    def finished(self): ...


def test_a_replay_that_stands_before_older_events_in_a_line_is_no_reason_to_forget_them():
    bus = EventBus(MemoryEventStore())
    bus.subscribe(Noted, lambda event: None)
    plan, event = bus._default._plan_for(Noted), Noted(1, "k")
    lanes = StoredLanes()
    evicted = Evicted(lanes)
    lanes.add(event, "k", plan, position=1)
    first = lanes.take()
    lanes.add(event, "k", plan, position=2)
    assert lanes.take() is None
    evicted.evict()  # 2 is on disk only, and so is 3, which comes meanwhile
    for letter_id in (1, 2, 3):
        evicted.replay((event, "k", plan, Ignored(), letter_id, 1), read_to=1)
    lanes.add_outside()
    lanes.advance(first)
    evicted.on_settled("k")
    _, _, up_to = evicted.next(read_to=3)
    evicted.read_back("k", None, up_to, read_to=3, added=0)  # the replays have nothing before them
    lanes.advance(lanes.take())
    evicted.on_settled("k")
    _, _, up_to = evicted.next(read_to=3)
    assert lanes.take().letter_id == 2  # and while 2 and 3 are read,
    assert lanes.take() is None  # the third replay lines up before them
    for position in (2, 3):
        lanes.take_in(event, "k", plan, None, position)
    evicted.read_back("k", 3, up_to, read_to=3, added=2)
    evicted.evict()
    evicted.free["k"] = None
    assert evicted.next(read_to=3)[1] == 1  # they are read again from 2 on
