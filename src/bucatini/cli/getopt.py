"""Command lines as glibc's getopt_long(3) reads them, with "+": options end at the first operand.

The standard library's module knows neither the messages that integrators look for nor how to stop at an operand and
still accept abbreviations; it also imports gettext, which a start cannot afford.
"""

from __future__ import annotations

from bucatini.errors import UsageError
from bucatini.lean.record import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class GetoptError(UsageError):
    """The command line does not follow the grammar: usage is shown with the message."""


class Spec(NamedTuple):
    """What getopt needs to know of an option."""

    long: str
    short: str  # one letter, or empty
    takes_value: bool
    same_as: str = ""  # the long name of another option of which this is a second name
    hidden: bool = False  # found by its full name alone


def getopt(arguments: list[str], specs: Iterable[Spec]) -> Iterator[tuple[str, str]]:
    """Yield (long name, value) for each option in order; at the end ("", operand) for each operand.

    Raises:
        GetoptError: in glibc's words, without the program's name.
    """
    table = list(specs)
    shorts = {spec.short: spec for spec in table if spec.short}
    at = 0
    while at < len(arguments):
        word = arguments[at]
        if word == "--":
            at += 1
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            spec = _find(table, name, word)
            if equals and not spec.takes_value:
                raise GetoptError(f"option '--{spec.long}' doesn't allow an argument")
            if spec.takes_value and not equals:
                at += 1
                if at == len(arguments):
                    raise GetoptError(f"option '--{spec.long}' requires an argument")
                value = arguments[at]
            yield spec.long, value
        elif word.startswith("-") and word != "-":
            rest = word[1:]
            while rest:
                letter, rest = rest[0], rest[1:]
                found = shorts.get(letter)
                if found is None:
                    raise GetoptError(f"invalid option -- '{letter}'")
                value = ""
                if found.takes_value:
                    value, rest = rest, ""
                    if not value:
                        at += 1
                        if at == len(arguments):
                            raise GetoptError(f"option requires an argument -- '{letter}'")
                        value = arguments[at]
                yield found.long, value
        else:
            break
        at += 1
    for operand in arguments[at:]:
        yield "", operand


def _find(table: list[Spec], name: str, word: str) -> Spec:
    """Return the option of this name or unambiguous beginning; two names of one option are not ambiguous."""
    matches: list[Spec] = []
    for spec in table:
        if spec.long == name:
            return spec
        if spec.hidden or not spec.long.startswith(name):
            continue
        if not matches or (spec.same_as or spec.long) != (matches[0].same_as or matches[0].long):
            matches.append(spec)
    if not matches:
        raise GetoptError(f"unrecognized option '{word}'")
    if len(matches) > 1:
        possible = " ".join(f"'--{spec.long}'" for spec in matches)
        raise GetoptError(f"option '{word}' is ambiguous; possibilities: {possible}")
    return matches[0]
