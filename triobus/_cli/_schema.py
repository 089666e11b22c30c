"""`triobus schema`: what the events of a bus look like, for programs in other languages."""

import argparse
from typing import Any

import msgspec
import trio

from triobus import __version__
from triobus._bus import EventBus
from triobus._cli._classes import types_of
from triobus._cli._commands import Commands
from triobus._cli._load import Maker, load, made
from triobus._cli._messages import CommandError
from triobus._cli._output import json_text
from triobus._events import DomainEvent

_TEXT = """\
Describe the events that the handlers of a bus get, as they are in a store and in the lines of
'triobus events --json': JSON Schema (2020-12), one definition for each type, or with --asyncapi a
document of AsyncAPI 3 with the handlers as operations."""

_EPILOG = """\
examples:
  triobus schema shop.events:bus > events.schema.json
  triobus schema shop.events:bus --type order.placed
  triobus schema shop.events:bus --asyncapi --title Shop > asyncapi.json

exit codes:
  0  done
  2  a bad call, or events that JSON Schema cannot describe"""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCHEMAS, _MESSAGES = "#/components/schemas/", "#/components/messages/"


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "schema",
        schema,
        summary="describe the events of a bus",
        description=_TEXT,
        epilog=_EPILOG,
        json="JSON, as without it",
    )
    add = parser.add_argument
    add("target", metavar="MODULE:NAME", help="where the EventBus is, or a function that makes it")
    add("--type", metavar="TYPE", help="only that type of event")
    add("--asyncapi", action="store_true", help="a document of AsyncAPI 3")
    add("--title", metavar="TEXT", help="the title of that document (default: the module)")


def schema(options: argparse.Namespace) -> tuple[int, str]:
    """Return the exit code and the document."""
    found, module = load(options.target)
    bus = trio.run(_made, found)
    subscriptions = [
        subscription
        for group in bus._lives.options.values()
        for subscription in group.group.subscriptions
    ]
    classes = types_of(subscriptions)
    if options.type is not None:
        there = ", ".join(cls.event_type for cls in classes) or "none"
        classes = [cls for cls in classes if cls.event_type == options.type]
        if not classes:
            raise CommandError(f"no handler gets {options.type!r}; they get: {there}")
    if options.asyncapi:
        return 0, json_text(_asyncapi(bus, classes, options.title or module.__name__))
    schemas, components = _described(classes, "#/$defs/")
    document: dict[str, Any] = {
        "$schema": _DIALECT,
        "oneOf": [
            {"title": cls.event_type, **found} for cls, found in zip(classes, schemas, strict=True)
        ],
        "$defs": components,
    }
    return 0, json_text(document)


async def _made(found: EventBus | Maker) -> EventBus:
    return await made(found) if callable(found) else found


def _described(
    classes: list[type[DomainEvent]], prefix: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a schema for each class, and what they refer to. Raises `CommandError`."""
    for cls in classes:
        try:
            msgspec.json.schema_components([cls])
        except TypeError as error:
            raise CommandError(
                f"{cls.__qualname__} ({cls.event_type!r}) has no schema: {error}"
            ) from None
    schemas, components = msgspec.json.schema_components(classes, ref_template=prefix + "{name}")
    return [*schemas], components


def _asyncapi(bus: EventBus, classes: list[type[DomainEvent]], title: str) -> dict[str, Any]:
    """Return a document of AsyncAPI 3: a channel for each type, an operation for each handler."""
    schemas, components = _described(classes, _SCHEMAS)
    keys = _keys([cls.event_type for cls in classes])
    messages = {
        key: {
            "name": cls.event_type,
            "contentType": "application/json",
            "payload": found,
            "description": (cls.__doc__ or "").strip().partition("\n")[0],
        }
        for key, cls, found in zip(keys, classes, schemas, strict=True)
    }
    channels = {
        key: {"address": cls.event_type, "messages": {key: {"$ref": _MESSAGES + key}}}
        for key, cls in zip(keys, classes, strict=True)
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": "1.0.0", "x-generator": f"triobus {__version__}"},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": _operations(bus, dict(zip(classes, keys, strict=True))),
        "components": {"messages": messages, "schemas": components},
    }


def _operations(bus: EventBus, keys: dict[type[DomainEvent], str]) -> dict[str, Any]:
    names, values = [], []
    for group, options in bus._lives.options.items():
        for subscription in options.group.subscriptions:
            for cls in types_of([subscription]):
                if cls in keys:
                    names.append(f"{group}.{subscription.name}.{cls.event_type}")
                    values.append(
                        {
                            "action": "receive",
                            "channel": {"$ref": f"#/channels/{keys[cls]}"},
                            "title": f"{subscription.name} in group {group}",
                        }
                    )
    return dict(zip(_keys(names), values, strict=True))


def _keys(names: list[str]) -> list[str]:
    """Return a key for each name of which AsyncAPI allows every character, none of them twice."""
    keys: dict[str, None] = {}
    for name in names:
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
        key, number = plain, 2
        while key in keys:
            key, number = f"{plain}_{number}", number + 1
        keys[key] = None
    return [*keys]
