"""Events there and back again, and what is said of those that cannot be kept."""

from typing import Any

import pytest

from triobus import DomainEvent, EventNotEncodable
from triobus._events import EventCodec


def refusal(event: DomainEvent, **options: Any) -> str:
    codec = EventCodec(**options)
    with pytest.raises(EventNotEncodable) as caught:
        codec.encode(event)
    with pytest.raises(EventNotEncodable) as later:
        codec.encode(event)
    assert str(later.value) == str(caught.value)
    return str(caught.value)
