"""Commands of Click made from functions, whose annotations say what each option is.

A parameter `beam: Annotated[int, Option("--beam", "-b", help="Its width.", min=1)] = 128` is one option; one whose type is a
dataclass stands for all its fields. Nothing of this is worked out before a command is called, or asked for its help.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import click

from asr.errors import nearest

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Option:
    """How a parameter is given on the command line.

    names:    as in "--output", "-o"; those of the parameter if none are given.
    settings: of click.Option, such as help, metavar and show_default; min and max of a number.
    """

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names, self.settings = names, settings


class Argument(Option):
    """Likewise of an argument, which is told by its place; a list of them takes all that follow."""


class Command(click.Command):
    """A function as a command: its docstring is the help, its parameters are the options; examples end the help."""

    def __init__(self, name: str, function: Callable[..., None], examples: Sequence[str]) -> None:
        shown = "\b\nExample" + "s" * (len(examples) > 1) + ":\n" + "\n".join(f"  {example}" for example in examples)
        super().__init__(name, help=inspect.getdoc(function), epilog=shown, callback=self._call)
        self._function = function

    def _call(self, **values: Any) -> None:
        _fill(self._function, values)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.params:
            self.params = list(_parameters(self._function))
        return super().get_params(ctx)

    def get_short_help_str(self, limit: int = 0) -> str:
        """The first paragraph, whole: Click cuts it to the limit."""
        return " ".join((self.help or "").partition("\n\n")[0].split())


class Group(click.Group):
    """Commands under one name, each imported when it is called, or the help of all is asked for.

    places: of each command where it is, as "module:function" or "module:group", and examples that its help ends with.
    """

    def __init__(self, name: str, places: Mapping[str, tuple[str, ...]], **settings: Any) -> None:
        super().__init__(name, no_args_is_help=True, **settings)
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._places and cmd_name not in self.commands:
            (module, name), *examples = self._places[cmd_name][0].split(":"), *self._places[cmd_name][1:]
            found = getattr(import_module(module), name)
            self.add_command(found if isinstance(found, Group) else Command(cmd_name, found, examples))
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self._places:
            ctx.fail(f"No such command '{args[0]}'; {nearest(args[0], self._places)}")
        return super().resolve_command(ctx, args)


class _Integer(click.IntRange):
    name = "whole number"

    def _describe_range(self) -> str:
        return "" if self.min is self.max is None else super()._describe_range()


class _Number(click.FloatRange):
    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        return number if math.isfinite(number) else self.fail(f"{value!r} is not a number.", param, ctx)

    def _describe_range(self) -> str:
        return "" if self.min is self.max is None else super()._describe_range()


_TYPES: dict[Any, Callable[..., click.ParamType[Any]]] = {
    int: _Integer,
    float: _Number,
    Path: partial(click.Path, path_type=Path),
}


def _complete_file(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What may be a file is completed as one by the shell."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _fill(taker: Callable[..., Any], values: dict[str, Any]) -> Any:
    """Call a function, or make a dataclass, with the values of its parameters and of those of dataclasses among them."""
    hints = get_type_hints(taker)
    return taker(
        **{
            name: _fill(hints[name], values) if is_dataclass(hints[name]) else values[name]
            for name in inspect.signature(taker).parameters
        }
    )


def _parameters(taker: Callable[..., Any]) -> Iterator[click.Parameter]:
    hints = get_type_hints(taker, include_extras=True)
    for name, parameter in inspect.signature(taker).parameters.items():
        if is_dataclass(hints[name]):
            yield from _parameters(hints[name])
        else:
            annotated, how = get_args(hints[name])
            yield _parameter(name, annotated, how, parameter.default)


def _parameter(name: str, hint: Any, how: Option, default: Any) -> click.Parameter:
    """hint: a type, a list of one, or either or None."""
    kind = get_args(hint)[0] if get_origin(hint) is UnionType else hint
    is_list = get_origin(kind) is list
    kind = get_args(kind)[0] if is_list else kind
    settings = {"show_default": True} | how.settings
    limits = {side: settings.pop(side) for side in ("min", "max") if side in settings}
    settings["type"] = _TYPES[kind](**limits) if kind in _TYPES else kind
    if default is inspect.Parameter.empty:
        settings["required"] = True
    else:
        settings["default"] = default
    if kind is str:
        settings["shell_complete"] = _complete_file
    if is_list:  # Click's own value of a list is a tuple
        settings["callback"] = lambda _context, _parameter, value: list(value) if value else default
    if isinstance(how, Argument):
        del settings["show_default"]
        return click.Argument([name], nargs=-1 if is_list else 1, **settings)
    if kind in (int, float):
        settings = {"metavar": "N"} | settings
    flags = how.names or (f"--{name.replace('_', '-')}",)
    if kind is bool:
        return click.Option([*flags, name], is_flag=True, **settings)
    if not is_list:  # heard as often as it is given, so that none is lost without a word
        settings["callback"] = _only
        settings["default"] = None if settings.get("default") is None else [settings["default"]]
    return click.Option([*flags, name], multiple=True, **settings)


def _only(_context: click.Context, _parameter: click.Parameter, values: tuple[Any, ...]) -> Any:
    """The value of an option that takes one.

    Two that differ are an error, also where the first comes from an alias that the second is meant to correct: that cannot
    be told from somebody who wants both files, formats or models, and would get one of them. The same twice is harmless.
    """
    if len(set(values)) > 1:
        raise click.BadParameter(f"takes one value, got {' and '.join(map(str, dict.fromkeys(values)))}.")
    return values[0] if values else None
