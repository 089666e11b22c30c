"""Control-C at every moment at which CPython lets it in.

A real SIGINT is raised after the Nth bytecode of triobus at which the interpreter looks for
signals, one run for each of them.
"""

import contextlib
import dis
import itertools
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import attrs

import triobus

PACKAGE = Path(triobus.__file__).parent
RESUME = dis.opmap["RESUME"]
LETS_SIGNALS_IN = {
    dis.opmap[name]
    for name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD")
    if name in dis.opmap
}
"""The bytecodes after which CPython runs signal handlers, beside the first one of a function.

Others are named alike and do not: CALL_INTRINSIC_1 is no call, and it is not interrupted.
"""


@attrs.define(eq=False)
class Interrupter:
    """Raises SIGINT at the Nth moment at which it can come in triobus after `start`."""

    at: int
    seen: int = 0
    where: str = ""
    """The place in the code at which it came."""
    _lets_in: dict[object, bool] = attrs.field(factory=dict)
    _bytecodes: dict[object, bytes] = attrs.field(factory=dict)
    """Of each frame, for asking a code object makes a copy and is told to every audit hook."""
    _is_on: bool = False

    @property
    def has_come(self) -> bool:
        """Whether it has interrupted."""
        return bool(self.where)

    def start(self) -> None:
        self._is_on = True
        own = sys._getframe()
        own.f_trace_opcodes = True  # from 3.12 on, settrace looks whether any frame wants them
        sys.settrace(self._enter)
        frame = own.f_back
        while frame is not None:  # settrace sees new calls only, and some frames wait already
            self._watch(frame)
            frame = frame.f_back

    def stop(self) -> None:
        if self._is_on:
            self._is_on = False
            sys.settrace(None)
            self._lets_in.clear()
            self._bytecodes.clear()

    def _watch(self, frame: FrameType) -> None:
        if _is_of_a_program(frame.f_code.co_filename):
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            frame.f_trace = self._step

    def _enter(self, frame: FrameType, what: str, argument: Any) -> Any:
        self._watch(frame)
        return frame.f_trace

    def _step(self, frame: FrameType, what: str, argument: Any) -> Any:
        if what == "opcode":
            if (bytecodes := self._bytecodes.get(frame)) is None:
                bytecodes = self._bytecodes[frame] = frame.f_code.co_code
            bytecode, number = bytecodes[frame.f_lasti : frame.f_lasti + 2]
            is_start = bytecode == RESUME and number & 3 == 0
            can_come = self._lets_in.get(frame, False)
            self._lets_in[frame] = is_start or bytecode in LETS_SIGNALS_IN
            self.seen += can_come
            if can_come and self.seen == self.at:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                self.stop()
                signal.raise_signal(signal.SIGINT)
        return self._step


_is_program: dict[str, bool] = {}


def _is_of_a_program(filename: str) -> bool:
    """Whether a file is of triobus itself, and not of its test kit."""
    if filename not in _is_program:
        path = Path(filename)
        _is_program[filename] = path.is_relative_to(PACKAGE) and not path.is_relative_to(
            PACKAGE / "testing"
        )
    return _is_program[filename]


@contextlib.contextmanager
def control_c() -> Iterator[None]:
    """Have Trio take care of SIGINT as in a program; put the tracing of coverage back at the end.

    Python warns of coroutines that were never awaited, where an interrupt comes between a call of
    a coroutine function and its `await`; that is what it was to do.
    """
    trace, handler = sys.gettrace(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        sys.settrace(trace)


class InterruptFailed(AssertionError):
    """An interrupt after which a promise was broken."""


def interrupt_everywhere(run: Callable[[Interrupter], object], stride: int = 1) -> int:
    """Run once for every moment, or for every so manyeth; return how many interrupts came."""
    for count, at in enumerate(itertools.count(1, stride)):
        interrupter = Interrupter(at)
        try:
            run(interrupter)
        except Exception as error:
            place = interrupter.where or "nowhere"
            raise InterruptFailed(f"interrupted at moment {at}, in {place}: {error}") from error
        if not interrupter.has_come:
            return count
    raise AssertionError("itertools.count never ends")
