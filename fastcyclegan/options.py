"""Command-line options as frozen dataclasses: the parser is built from their fields.

Nothing here imports torch, so that ``--help`` and a wrong flag answer at once. ``-`` and ``_`` are
the same in a flag.
"""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from fastcyclegan.errors import UserError

Config = TypeVar("Config")


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A dataclass field that is a command-line option.

    ``metadata`` may hold ``choices``, ``low`` and ``high`` (inclusive bounds), ``above`` (exclusive
    lower bound), ``refused`` (values of JZ that are not among the choices, each with a reason) and
    ``inverse`` (of a flag that a preset sets: the name of the flag that takes it back).
    """
    return field(default=default, metadata={"help": text, **metadata})


def required(text: str, **metadata: Any) -> Any:
    """A dataclass field that is an option without a default; ``metadata`` as for an option."""
    return field(metadata={"help": text, **metadata})


def positional(text: str, **metadata: Any) -> Any:
    """A dataclass field that is a word without a flag; such words come in the fields' order.

    ``several``: one word or more.
    """
    return field(metadata={"help": text, "positional": True, **metadata})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; --help lists the options")


def parse(cls: type[Config], prog: str, description: str, argv: Sequence[str]) -> Config:
    """Build ``cls`` from command-line words.

    Args:
        cls: a frozen dataclass whose fields were made by :func:`option` or :func:`required`.
        prog: the command as a user types it, for ``--help``.
        description: one line for ``--help``.
        argv: the words behind the command.

    Raises:
        UserError: an unknown or removed option, a missing one, or a value out of range.
    """
    config, _ = parse_explicit(cls, prog, description, argv)
    return config


def parse_explicit(
    cls: type[Config], prog: str, description: str, argv: Sequence[str]
) -> tuple[Config, frozenset[str]]:
    """As :func:`parse`, and the names of the options that ``argv`` set itself."""
    words = [_word(item) for item in fields(cls) if item.metadata.get("positional")]
    usage = " ".join([prog, *words, "[options]"])
    parser = _Parser(prog=prog, usage=usage, description=description, allow_abbrev=False)
    for item in fields(cls):
        _add(parser, item)
    names = [item.name for item in fields(cls) if not item.metadata.get("positional")]
    mapped = getattr(cls, "MAPPED", {})
    inverses = [item.metadata["inverse"] for item in fields(cls) if "inverse" in item.metadata]
    words = _mapped([_normal(word, [*names, *inverses, *mapped]) for word in argv], mapped)
    given, extra = parser.parse_known_args(words)
    if extra:
        raise UserError(_unknown(extra[0], names, getattr(cls, "REMOVED", {})))
    for item in fields(cls):
        if item.default is MISSING and getattr(given, item.name, None) in (None, []):
            flag = "" if item.metadata.get("positional") else "--"
            raise UserError(f"{flag}{item.name} is missing: {item.metadata['help']}")
    config = cls(**{item.name: getattr(given, item.name, item.default) for item in fields(cls)})
    check_ranges(config)
    return config, frozenset(vars(given))


def check_ranges(config: Any) -> None:
    """Raise UserError for the first value of ``config`` outside its field's choices or bounds."""
    for item in fields(config):
        value, rule = getattr(config, item.name), item.metadata
        if value is None or rule.get("several"):
            continue
        if value == "":
            raise UserError(f"--{item.name} '': must not be empty")
        if value in rule.get("refused", {}):
            raise UserError(f"--{item.name} {value}: {rule['refused'][value]}")
        if "choices" in rule and value not in rule["choices"]:
            allowed = ", ".join(map(str, rule["choices"]))
            near = _did_you_mean(str(value), [str(c) for c in rule["choices"]])
            flag = "" if rule.get("positional") else "--"
            raise UserError(f"{flag}{item.name} {value}: not one of {allowed}{near}")
        if isinstance(value, float) and value != value:
            raise UserError(f"--{item.name} {value}: not a number")
        if "above" in rule and not value > rule["above"]:
            raise UserError(f"--{item.name} {value}: must be above {rule['above']}")
        if "low" in rule and value < rule["low"]:
            raise UserError(f"--{item.name} {value}: must be at least {rule['low']}")
        if "high" in rule and value > rule["high"]:
            raise UserError(f"--{item.name} {value}: must be at most {rule['high']}")


def _add(parser: argparse.ArgumentParser, item: Field) -> None:
    flag, text = f"--{item.name}", item.metadata["help"].replace("%", "%%")
    if item.metadata.get("positional"):
        # nargs "?", so that the message about a missing word is ours
        nargs = "*" if item.metadata.get("several") else "?"
        parser.add_argument(item.name, nargs=nargs, metavar=item.name.upper(), help=text)
        return
    if item.type is bool:
        parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
        if "inverse" in item.metadata:
            other = {"dest": item.name, "default": argparse.SUPPRESS, "help": f"takes back {flag}"}
            parser.add_argument(f"--{item.metadata['inverse']}", action="store_false", **other)
        return
    if item.default not in (MISSING, None):
        text += f" (default: {item.default})"
    kind = _base_type(item.type)
    choices = item.metadata.get("choices")
    metavar = "{" + ",".join(map(str, choices)) + "}" if choices else None
    parser.add_argument(
        flag,
        type=kind,
        metavar=metavar or {int: "N", float: "X", str: "TEXT"}[kind],
        default=argparse.SUPPRESS,
        help=text,
    )


def _word(item: Field) -> str:
    """What stands for a positional word in the usage."""
    return item.name.upper() + (" ..." if item.metadata.get("several") else "")


def _base_type(annotation: Any) -> type:
    options = [t for t in getattr(annotation, "__args__", ()) if t is not type(None)]
    return options[0] if options else annotation


def _normal(word: str, names: Sequence[str]) -> str:
    """``--load-size=3`` as ``--load_size=3``: only the flag's own dashes are touched."""
    flag, equals, value = word.partition("=")
    if flag.startswith("--") and flag[2:].replace("-", "_") in names:
        flag = "--" + flag[2:].replace("-", "_")
    return flag + equals + value


def _mapped(words: Sequence[str], mapped: Mapping[str, Sequence[str]]) -> list[str]:
    """``words`` with JZ's flags in ``mapped`` replaced by what says the same here."""
    if {"--dropout", "--no_dropout"} <= set(words):
        raise UserError("--dropout and --no_dropout: choose one")
    flags = {f"--{name}": words_here for name, words_here in mapped.items()}
    return [new for word in words for new in flags.get(word, [word])]


def _unknown(word: str, names: Sequence[str], removed: Mapping[str, str]) -> str:
    if not word.startswith("-"):
        return f"{word!r} stands alone: every value needs its flag; --help lists them"
    name = word.partition("=")[0].lstrip("-")
    if name.replace("-", "_") in removed:
        return f"--{name} is not an option here: {removed[name.replace('-', '_')]}"
    return f"--{name}: unknown option{_did_you_mean(name, names, '--')}; --help lists all"


def _did_you_mean(word: str, names: Sequence[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word.replace("-", "_"), names, n=1, cutoff=0.6)
    return f" (did you mean {prefix}{near[0]}?)" if near else ""
