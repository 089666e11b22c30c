"""The tables of the tests' own README name tests, rooms and proofs that there are."""

from pathlib import Path

from tests.documents import DOCUMENTS, ROOMS, rows
from tests.proofs import __main__ as proofs

FAULTS = {
    "a handler never returns": (
        "test_a_handler_that_never_returns_holds_up_its_aggregate_and_no_other"
    ),
    "the same, with a `timeout`": (
        "test_with_a_timeout_one_that_never_returns_becomes_a_dead_letter"
    ),
    "the same, at `bus.stop(timeout=...)`": (
        "test_stop_with_a_timeout_ends_a_handler_that_would_never_return"
    ),
    "a handler swallows its cancellation": (
        "test_one_that_swallows_its_cancellation_is_waited_for_until_it_returns"
    ),
    "it raises a `BaseException`, `KeyboardInterrupt`, `SystemExit`": (
        "test_what_is_no_exception_ends_the_bus_and_the_event_comes_on_the_next_start"
    ),
    "it cancels a scope of its own": ("test_a_handler_may_cancel_a_scope_of_its_own"),
    "it raises `trio.Cancelled` out of its scope": (
        "test_a_cancellation_that_a_handler_raises_out_of_its_scope_is_a_failure_like_any_other"
    ),
    "it cancels the nursery around its bus": (
        "test_one_that_cancels_the_nursery_around_its_bus_ends_it_as_any_cancellation_does"
    ),
    "it calls `bus.stop()` on its own bus": (
        "test_a_stop_inside_a_handler_raises_would_deadlock_and_the_bus_runs_on"
    ),
    "it calls `bus.wait_idle()` or `bus.publish_and_wait()`": (
        "test_what_would_wait_for_the_handler_that_calls_it_raises_would_deadlock"
    ),
    "`where` raises": ("test_an_error_in_where_is_a_failure_of_the_handler"),
    "the repr of an event, or the str of an error, raises": (
        "test_an_event_and_an_error_that_cannot_be_shown_go_the_way_of_all_others"
    ),
    "an error with a message of 50 MB": ("test_an_error_of_50_mb_is_cut_before_it_is_kept"),
    "100,000 aggregates": (
        "test_a_hundred_thousand_aggregates_keep_their_order_and_leave_nothing_behind"
    ),
    "an event of 1 MiB and one byte, with a store": (
        "test_an_event_of_1_mib_is_kept_and_one_byte_more_is_refused_and_not_delivered"
    ),
    "10,000 subscriptions": ("test_ten_thousand_subscriptions_are_called_in_their_order"),
    "the clock of the system is set back or forward": (
        "test_a_retry_keeps_its_time_though_the_clock_of_the_system_is_set"
    ),
    "256 tasks publish while the bus stops": (
        "test_publishers_know_what_was_accepted_when_a_bus_is_stopped"
    ),
    "the process is killed": (
        "test_nothing_is_lost_or_reordered_when_programs_are_killed_whatever_they_are_doing"
    ),
    "it is killed in the same event again and again": (
        "test_a_killed_process_that_starts_again_and_again_comes_to_an_end"
    ),
    "the process forks": (
        "test_a_forked_child_is_refused_and_its_exit_drops_nothing_of_the_parents"
    ),
    "SQLite is interrupted": ("test_a_commit_that_sqlite_interrupts_fails_its_publish_alone"),
    "the disk is full": (
        "test_a_full_disk_fails_exactly_its_publishes_and_the_bus_goes_on_when_there_is_room"
    ),
    "a limit of file sizes, or an error on writing": (
        "test_a_limit_of_file_sizes_is_an_error_of_the_disk_and_the_bus_goes_on"
    ),
    "a commit fails to sync": (
        "test_a_commit_that_fails_to_sync_is_fenced_and_not_in_the_log_after_a_crash"
    ),
    "and that other commit fails too": (
        "test_a_commit_whose_fence_fails_too_has_an_unknown_outcome_and_can_be_repeated"
    ),
    "a checkpoint of SQLite fails to sync": (
        "test_a_checkpoint_that_fails_to_sync_loses_nothing_and_is_told"
    ),
    "another program has locked the file": (
        "test_a_file_that_another_program_has_locked_is_told_and_the_bus_goes_on"
    ),
    "one read of the log fails": ("test_a_read_that_fails_is_made_again_and_health_says_so"),
    "a reader never ends, and the `-wal` grows": (
        "test_a_reader_that_never_ends_is_told_until_it_ends"
    ),
    "the file or its `-wal` is removed or replaced": (
        "test_a_store_that_is_removed_or_replaced_while_it_is_open_is_noticed"
    ),
    "finished deliveries cannot be recorded at a clean end": (
        "test_what_cannot_be_recorded_at_a_clean_end_is_an_error_as_itself"
    ),
    "the same, and the block raises": (
        "test_what_cannot_be_recorded_leaves_together_with_the_error_of_the_block"
    ),
    "the same, under cancellation": (
        "test_cancellation_goes_on_though_something_cannot_be_recorded"
    ),
    "a row of the log is damaged": (
        "test_a_damaged_row_ends_a_bus_that_comes_to_it_and_is_never_handled"
    ),
    "a bus in a guest run, and its host is interrupted": (
        "test_control_c_leaves_the_guest_as_keyboard_interrupt_and_the_store_whole"
    ),
}
"""The test of each row of the table of faults."""


def test_every_fault_of_the_table_has_its_test():
    section = DOCUMENTS["tests/README.md"].split("## Faults, and what they become")[1]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines()[4:] if line]
    assert rows == [*FAULTS]
    sources = [path.read_text() for path in Path(__file__).parent.rglob("test_*.py")]
    for name in FAULTS.values():
        assert any(f"def {name}(" in source for source in sources), name


def test_every_room_of_the_tests_is_in_their_readme():
    assert sorted(row[0] for row in rows("Running the tests")) == [
        f"`tests/{room}`" for room in ROOMS
    ]


def test_every_proof_is_in_the_readme_of_the_tests():
    commands = [row[0].split()[3].strip("`") for row in rows("Proof") if "tests.proofs" in row[0]]
    assert commands == [*proofs.PROOFS]
