"""Finds the user's bus."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType

from triobus._bus import EventBus
from triobus._cli._messages import CommandError
from triobus._errors import TriobusError

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

Maker = Callable[[], object]
"""A function of the user's that makes the bus, plain or async."""


def load(target: str) -> tuple[EventBus | Maker, ModuleType]:
    """Import `MODULE:NAME`, a bus or what makes one, with its module; raises `CommandError`."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise CommandError(f"{target!r} is not MODULE:NAME: give for example shop.events:bus")
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)
    module = _import(module_name)
    try:
        found = getattr(module, name)
    except AttributeError:
        buses = [key for key, value in vars(module).items() if isinstance(value, EventBus)]
        hint = f"; it has the bus {', '.join(map(repr, buses))}" if buses else ""
        raise CommandError(f"module {module_name!r} has no {name!r}{hint}") from None
    if not isinstance(found, EventBus) and (isinstance(found, type) or not callable(found)):
        raise CommandError(
            f"{target!r} is no EventBus and no function that makes one, but an object of type "
            f"{type(found).__name__!r}"
        )
    return found, module


async def made(make: Maker) -> EventBus:
    """Return the bus that a function makes, plain or async; raises `CommandError`."""
    name = f"{getattr(make, '__qualname__', type(make).__qualname__)}()"
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise CommandError(f"{name} cannot be called without arguments: {error}") from None
    except ValueError:
        pass  # some built-in functions do not tell; the call will
    try:
        bus = make()
        if inspect.isawaitable(bus):
            bus = await bus
    except (Exception, SystemExit) as error:
        raise _failed(f"calling {name}", error) from error  # the user's code may raise anything
    if not isinstance(bus, EventBus):
        raise CommandError(
            f"{name} returned no EventBus but an object of type {type(bus).__name__!r}"
        )
    return bus


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise CommandError(f"there is no module {missing!r} here or installed") from None
        raise _failed(f"importing {name!r}", error) from error


def _failed(doing: str, error: BaseException) -> CommandError:
    # An error of ours is one sentence for a person; the place is where the user's code called us.
    text = str(error) if isinstance(error, TriobusError) else repr(str(error))
    if isinstance(error, SyntaxError) and error.filename is not None:
        where = f"{error.filename}, line {error.lineno}"
    else:
        places = traceback.extract_tb(error.__traceback__)
        own = [place for place in places if not place.filename.startswith(_PACKAGE)]
        where = f"{(own or places)[-1].filename}, line {(own or places)[-1].lineno}"
    return CommandError(f"{doing} failed: {type(error).__name__}: {text} ({where})")
