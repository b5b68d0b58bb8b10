"""Configs made of options or of a config.yaml, written back, and compared."""

import dataclasses
import shlex
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import yaml

from .config import CHANGEABLE, FIXED, INVOCATION, FinetuneConfig, RunFields, did_you_mean, flag
from .errors import DataError, UsageError
from .files import write_text


def command_line(config):
    """The command, or for a run on Python objects the call, that does the same run again in a new folder."""
    given = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("data", *INVOCATION) and getattr(config, field.name) != field.default
    }
    if config.data is None:
        return f"bitfast.{config.command}(data{''.join(f', {name}={value!r}' for name, value in given.items())})"
    words = ["bitfast", config.command, config.data]
    for name, value in given.items():
        words += [flag(name)] if value is True else [flag(name), str(value)]
    return shlex.join(words)


def build(cls, options):
    """cls(**options), with a UsageError for a name it does not have (and a did-you-mean) or a value of another kind."""
    names = [field.name for field in dataclasses.fields(cls)]
    for option in options:
        if option not in names:
            raise UsageError(f"{cls.__name__} has no option {option!r}{did_you_mean(option, names)}")
    kinds = get_type_hints(cls)
    for option, value in options.items():
        if not _is(value, kinds[option]):
            raise UsageError(f"{flag(option)} {value!r}: it must be {_said(kinds[option])}")
    return cls(**options)


def _is(value, kind):
    """Whether a value is of a field's type, a class or a union: an int is a float too, a bool is no int."""
    if get_origin(kind) is Literal:
        return isinstance(value, str)
    if get_origin(kind) is tuple:
        return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value))
    if get_args(kind):
        return any(_is(value, option) for option in get_args(kind))
    wider = {int: Integral, float: Real}.get(kind, kind)
    return isinstance(value, wider) and (kind is bool or not isinstance(value, bool))


def _said(kind):
    if get_origin(kind) is tuple:
        return "a list of texts"
    if get_args(kind) and get_origin(kind) is not Literal:
        return " or ".join(map(_said, get_args(kind)))
    return {int: "an integer", float: "a number", bool: "true or false", type(None): "nothing"}.get(kind, "a text")


def changed(config, other):
    """Names of the fields in which two configs of one run differ though they may not."""
    return [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in INVOCATION + CHANGEABLE and getattr(config, field.name) != getattr(other, field.name)
    ]


def may_change(name, config, saved, run):
    """Return if a resumed run may have config's value of a field, not the one it was saved with; else UsageError."""
    if name in config.allowed:
        return
    advice = f"drop {flag(name)} to continue the run, or start a new one with another --out"
    if name not in FIXED:
        advice = f"drop {flag(name)}, or allow it from here on with --allow-change {name}, or use another --out"
    raise UsageError(
        f"{run} was started with {name} = {getattr(saved, name)!r}, this call says {getattr(config, name)!r}: {advice}"
    )


def save_config(config, path):
    """Write the config as YAML: the command, then one key per field."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in INVOCATION}
    write_text(path, yaml.safe_dump({"command": config.command} | values, sort_keys=False))


def load_config(cls, path):
    """The config saved at `path`, an instance of `cls`; RunFields takes that of any recipe.

    DataError if the file is no config, UsageError if it is one of another command.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"{path} cannot be read as a bitfast config ({error}): name the config.yaml of a run".replace("\n", " ")
        ) from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is not a bitfast config (a YAML mapping is expected): name the config.yaml of a run")
    command = values.pop("command", FinetuneConfig.command)
    saved = next((each for each in RunFields.__subclasses__() if each.command == command), None)
    if saved is None:
        raise DataError(f"{path} names no recipe of this bitfast, command {command!r}: name the config.yaml of a run")
    if not issubclass(saved, cls):
        raise UsageError(
            f"{path} is of bitfast {command}, not of bitfast {cls.command}:"
            f" bitfast {command} --resume {Path(path).parent} continues it"
        )
    try:
        return build(saved, values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def command_of(path):
    """The command whose config is saved at `path`; None if the file is not a config."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8")).get("command", FinetuneConfig.command)
    except (OSError, ValueError, yaml.YAMLError, AttributeError):
        return None
