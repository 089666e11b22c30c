"""triobus: a domain-event bus that lives inside a Trio program. This is what it promises.

Without a store everything is in memory, and a process that ends takes it with it. What a store adds
is said in "With a store".

Publishing

- `bus.publish()` returns when the event is accepted. If it raises, cancellation included, the event
  was not accepted and no handler sees it.
- `bus.publish_many()` is all or nothing. It waits until the whole list fits; a list that is longer
  than the buffer is let in when the group holds nothing else.
- Memory is bounded. A group holds `buffer` events (1,000 unless you say otherwise) beyond those
  that its workers have. Then publishers wait for room, and `bus.publish_nowait()` raises `BusFull`.
- A handler may publish to its own bus under any load. Its events do not wait for room and may
  exceed `buffer`; publishers outside then wait until the group is below it again.
- An event that a handler publishes has the handled event as cause: its `causation_id` is that
  event's `event_id`. It inherits the `correlation_id`, too; where the first event of a chain has
  none, its `event_id` is taken.
- An event that no subscription wants is accepted, and counted by its type: `bus.statistics()` has
  `unhandled`.

Order

- In a group, the events of one aggregate are handled one at a time, in the order in which they were
  published, retries included. What `event.aggregate_id` returns is the aggregate; None, which it is
  unless your class says otherwise, means that the event needs no order: four workers may handle 0,
  1, 2 as 2, 1, 0.
- Different aggregates run at the same time on the group's workers. One that is slow or fails holds
  up no other. One that waits for a retry occupies no worker.
- `workers=1` gives total order, in which only a retry is overtaken: while an aggregate waits for
  one, the events of others go past. `ordering="none"` drops the order of aggregates.
- Inside a delivery the handlers run one after the other, by `priority`, higher first, then as they
  were subscribed. Groups do not wait for each other's handlers.
- Every attempt, handler and group gets the same event. A list inside it that a handler changes is
  changed for those that come after: keep tuples in events.

Failure

- A handler that raises, or exceeds its `timeout`, is called again as its `Retry` says, on Trio's
  clock: four attempts unless you say otherwise, after 0.1, 0.2 and 0.4 seconds. Delays grow up to
  30 seconds, or to `max_delay`. A handler that knows better raises `RetryAfter`: `RetryAfter(60)`
  asks for a minute, and with `counts=False` it is none of the limited attempts. After the last
  attempt the event becomes a `DeadLetter` of that handler, with type, message and traceback of the
  error, and the next handler has its turn.
- A plain `def` handler runs in a thread, which cannot be interrupted: it notices its `timeout` only
  where it calls `trio.from_thread.check_cancelled()`.
- With `hold=True` the later events of an aggregate follow its dead letter, in order and untried,
  until that is replayed or discarded. They are dead letters, too, with the error `HeldBack`.
- Without a store dead letters are in memory, the newest 1,000 of them and those that hold others
  back or are being replayed. `bus.dead_letters.dropped` counts the rest.
- With `on_failure="raise"` the error ends the bus and leaves its block as it would leave a nursery.
- Cancellation is never a failure. KeyboardInterrupt and SystemExit are never swallowed.

With a store

- `bus.publish()` returns when the event is on disk, with its position in the log. Events that are
  published at the same time share a commit. If the commit fails, exactly its publishers get the
  error, and none of its events is delivered. The one exception is `OutcomeUnknown`.
- Publishing is idempotent: an event that is published again is accepted once, and keeps its first
  position; `Published.is_new` tells the two apart. Another event under the same `event_id` is
  refused with `EventIdConflict`; the event's own fields count, its time, causes and metadata do
  not.
- Delivery is at least once. What was accepted is handled by every group, whatever kills the
  process. On start a group goes on where it was; handled again is only what had not finished, or
  whose record was in the commit under way. Leaving the block in peace repeats nothing.
- Attempts, retries and dead letters outlive a restart, and so do `hold=True` and the order of each
  aggregate. A retry that was due in an hour is still due in an hour.
- An event in which the process dies stops no other. After an unclean end it is recorded that a
  handler is called, before it is, for those events that may have been in flight; one in which the
  process dies again is handled alone, and after the last attempt that its `Retry` grants it is a
  dead letter with the error `ProcessDied`.
- Publishers never wait for a slow group. It reads its backlog from disk, and never has more than
  `buffer` events in memory. What waits for a retry takes no room: of it only its place and its time
  are kept, so a broker that is down for fifty thousand aggregates holds up none of the others.
- A new group begins with what comes after its first subscription, or with the whole log if it was
  made with `start="beginning"`. The names of groups and subscriptions carry their progress.
- What an event holds comes back equal and of the same type, or publishing it is refused with
  `EventNotEncodable`, which names the field and the way out. A class that cannot be kept at all is
  refused when it is subscribed to or when the bus starts.
- An event that cannot be made from its JSON, because its class is gone for example, becomes a dead
  letter with the reason.
- One bus at a time has a store. Another one gets `StoreInUse` with the process id of the first.
  Any number of programs may read.

Effects exactly once

- A handler with `transactional=True` runs in the store's thread, inside the commit that records
  that its event is settled. Its writes to the program's own tables, the events that it publishes
  and that record are stored together or not at all, whatever kills the process. Many deliveries
  share a commit, those of one aggregate in their order; one that raises is rolled back alone, and
  is tried again like any other.
- `store.transact()` calls a function of yours in the same way, on your own tables. The tables of
  triobus can be read there, and never written.
- An error of the disk is no failure of a transactional handler: it is called again when the store
  can commit.

Time, batches and control

- `bus.publish()` with `at` or `delay` accepts an event now, which goes into the log when it is due,
  in the order of due times and then of publication. With a store it survives restarts, and what
  became due meanwhile comes at once. `bus.cancel_scheduled()` says whether it came in time.
- While the bus lives due times move with Trio's clock, and across restarts with wall time. Draining
  does not wait for what is not due; without a store that is counted as left.
- A group with `batch` gives its handlers tuples of events: what is ready, in order. A batch is one
  attempt. If it fails for good it is halved until the events are known that fail alone, and only
  these become dead letters. What waits for a retry takes room of `buffer` in such a group.
- A paused group begins with no further event until it is resumed; publishing goes on.
  `group.reset()` sends a paused group to another place in the log, in one commit with a function of
  yours, and forgets its attempts and dead letters.

Looking on

- `bus.add_instrument()` takes an `Instrument`, which is told what is published, attempted, retried,
  settled, dead-lettered and committed, and of groups that are paused. It may come and go while the
  bus runs. One that raises is removed and logged, and disturbs nothing. Without instruments, and
  for what none of them overrides, nothing is spent.
- `triobus.prometheus` and `triobus.opentelemetry` have one each, for metrics and traces.
- `bus.retries` lists what waits for a retry; it can be tried now, or given up.
- `Handlers` are declared where no bus is known, and `bus.include()` puts them into a group.

Start and stop

- When the body of `async with bus:` begins, or `await nursery.start(bus.run)` returns, every worker
  is running, and `bus.statistics()` says so.
- Leaving the block drains: it waits for what is queued, running or waiting for a retry, and after a
  second logs what it waits for. With `drain="running"` it waits for the handlers that run, and
  leaves everything else to the store and the next start. Leaving it by an exception drains, too;
  by cancellation or KeyboardInterrupt it does not: the handlers are cancelled, and what was left is
  counted and logged.
- The exception of your block leaves it as itself, not wrapped in a group, unless the bus fails,
  too.
- A bus is a description. When it has stopped it can be started again: groups and subscriptions
  stay, queues and statistics begin anew. While it runs a second start is `BusAlreadyStarted`.
- It does not poll: with nothing to do it causes no wake-up.
- Inside a handler `bus.stop()`, `bus.wait_idle()`, `bus.publish_and_wait()` and
  `bus.dead_letters.replay()` raise `WouldDeadlock`, for they would wait for that handler.
"""

from triobus._bus import EventBus, StopReport
from triobus._bus.dead_letters import DeadLetters
from triobus._bus.health import Health
from triobus._bus.retries import Retries, WaitingRetry
from triobus._errors import (
    BusAlreadyStarted,
    BusClosed,
    BusFull,
    DuplicateName,
    EventIdConflict,
    EventNotDecodable,
    EventNotEncodable,
    GivenUp,
    GroupNotPaused,
    HandlerTimeout,
    HeldBack,
    InvalidEvent,
    InvalidHandler,
    InvalidOption,
    InvalidStorePath,
    NoDelivery,
    NotAStore,
    NotInTrio,
    OutcomeUnknown,
    ProcessDied,
    SequenceConflict,
    StatementRefused,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreForked,
    StoreFull,
    StoreInUse,
    StoreIOError,
    StoreNotFound,
    StoreReadOnly,
    StoreReplaced,
    StoreTooNew,
    StoreUnavailable,
    StrayCancelled,
    TriobusError,
    UnknownDeadLetter,
    UnknownSubscription,
    WouldDeadlock,
)
from triobus._events import Converter, DomainEvent, Erased, Published, upcaster
from triobus._events.causes import Delivery
from triobus._groups.current import current_delivery
from triobus._groups.dead_letters import DeadLetter
from triobus._groups.declared import BatchHandlers, Handlers
from triobus._groups.instruments import Instrument
from triobus._groups.listeners import Listener
from triobus._groups.outcome import Outcome
from triobus._groups.retry import Retry, RetryAfter
from triobus._groups.statistics import BusStatistics, GroupStatistics
from triobus._groups.subscriptions import BatchGroup, Group, Subscription
from triobus.stores import (
    EventStore,
    MemoryEventStore,
    PostgresEventStore,
    SqliteEventStore,
    Stored,
    StoredGroup,
    StoredNode,
    StoreStatistics,
    Transaction,
)

__version__ = "0.1.0"

__all__ = [
    "BatchGroup",
    "BatchHandlers",
    "BusAlreadyStarted",
    "BusClosed",
    "BusFull",
    "BusStatistics",
    "Converter",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "DomainEvent",
    "DuplicateName",
    "Erased",
    "EventBus",
    "EventIdConflict",
    "EventNotDecodable",
    "EventNotEncodable",
    "EventStore",
    "GivenUp",
    "Group",
    "GroupNotPaused",
    "GroupStatistics",
    "HandlerTimeout",
    "Handlers",
    "Health",
    "HeldBack",
    "Instrument",
    "InvalidEvent",
    "InvalidHandler",
    "InvalidOption",
    "InvalidStorePath",
    "Listener",
    "MemoryEventStore",
    "NoDelivery",
    "NotAStore",
    "NotInTrio",
    "Outcome",
    "OutcomeUnknown",
    "PostgresEventStore",
    "ProcessDied",
    "Published",
    "Retries",
    "Retry",
    "RetryAfter",
    "SequenceConflict",
    "SqliteEventStore",
    "StatementRefused",
    "StopReport",
    "StoreClosed",
    "StoreCorrupt",
    "StoreError",
    "StoreForked",
    "StoreFull",
    "StoreIOError",
    "StoreInUse",
    "StoreNotFound",
    "StoreReadOnly",
    "StoreReplaced",
    "StoreStatistics",
    "StoreTooNew",
    "StoreUnavailable",
    "Stored",
    "StoredGroup",
    "StoredNode",
    "StrayCancelled",
    "Subscription",
    "Transaction",
    "TriobusError",
    "UnknownDeadLetter",
    "UnknownSubscription",
    "WaitingRetry",
    "WouldDeadlock",
    "current_delivery",
    "upcaster",
]
