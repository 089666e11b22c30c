"""Finds the user's bus."""

import importlib
import os
import sys
import traceback
from types import ModuleType

from triobus._bus import EventBus
from triobus._cli._messages import CommandError


def load(target: str) -> tuple[EventBus, ModuleType]:
    """Import `MODULE:NAME` and return the bus with its module; raises `CommandError`."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise CommandError(f"{target!r} is not MODULE:NAME: give for example shop.events:bus")
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)
    module = _import(module_name)
    try:
        bus = getattr(module, name)
    except AttributeError:
        found = [key for key, value in vars(module).items() if isinstance(value, EventBus)]
        hint = f"; it has the bus {', '.join(map(repr, found))}" if found else ""
        raise CommandError(f"module {module_name!r} has no {name!r}{hint}") from None
    if not isinstance(bus, EventBus):
        raise CommandError(
            f"{target!r} is no EventBus but an object of type {type(bus).__name__!r}"
        )
    return bus, module


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise CommandError(f"there is no module {error.name!r} here or installed") from None
        raise _failed(name, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error  # the user's module may raise anything


def _failed(name: str, error: BaseException) -> CommandError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return CommandError(
        f"importing {name!r} failed: {type(error).__name__}: {str(error)!r} "
        f"({place.filename}, line {place.lineno})"
    )
