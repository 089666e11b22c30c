"""Handlers that are declared without a bus, for a program to put into one."""

from collections.abc import Sequence

from triobus._errors import DuplicateName
from triobus._groups.handlers import Handler, check_handler, qualified_name
from triobus._groups.subscribing import Wanted, subscribe
from triobus._groups.subscribing_batches import subscribe_batch


class Handlers:
    """Handlers of one part of a program, declared where no bus is known.

    `handlers = Handlers()`, `@handlers.subscribe(OrderPlaced)` with all options that a bus takes,
    and in the program `bus.include(handlers, group="mail")`. They may be included in several groups
    and buses. Errors of a declaration are raised where it stands.
    """

    def __init__(self) -> None:
        self._declared: dict[str, tuple[Handler, Wanted]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(self._declared) or 'none'}>"

    subscribe = subscribe

    def _subscribe(self, handler: Handler, wanted: Wanted) -> None:
        """Keep what was declared. Raises `InvalidHandler` and `DuplicateName`."""
        check_handler(handler, is_transactional=wanted.transactional)
        name = wanted.name or qualified_name(handler)
        if name in self._declared:
            raise DuplicateName(
                f"a handler named {name!r} is declared already; give this one another name: "
                "subscribe(..., name=...)"
            )
        self._declared[name] = (handler, wanted)

    def _all(self) -> Sequence[tuple[Handler, Wanted]]:
        """Return what was declared, in its order."""
        return [*self._declared.values()]


class BatchHandlers(Handlers):
    """The same for groups with `batch`: the handlers take a tuple of events."""

    subscribe = subscribe_batch  # type: ignore[assignment]  # as of `BatchGroup`
