"""`NamedTuple` for what a start imports: the standard library's, without what that costs.

`typing` and what it imports in turn take a tenth of a start, and it compiles code for each class, of which a start
makes about sixty. To type checkers this is `typing.NamedTuple`; at run time it has of it what is used here: fields with
defaults, methods, `_fields`, `_field_defaults`, `_replace` and the same texts. Errors and results are those of
`typing.NamedTuple` (tests/unit/lean/test_record.py holds the two side by side).
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in `typing`: what a type checker takes for true

if TYPE_CHECKING:
    from typing import NamedTuple

    __all__ = ["TYPE_CHECKING", "NamedTuple"]
else:
    from _collections import _tuplegetter

    class _Made(type):
        """The class of the classes."""

        def __new__(cls, name, bases, namespace):
            if not bases:
                return type.__new__(cls, name, (tuple,), namespace)
            annotations = namespace.get("__annotations__")
            if annotations is None:  # Python 3.14 has a function that makes them (PEP 649)
                annotate = namespace.get("__annotate_func__")
                annotations = annotate(1) if annotate is not None else {}
            fields = tuple(annotations)
            namespace["_field_defaults"] = {field: namespace[field] for field in fields if field in namespace}
            for at, field in enumerate(fields):
                namespace[field] = _tuplegetter(at, field)
            namespace["_fields"] = namespace["__match_args__"] = fields
            namespace["__slots__"] = ()
            return type.__new__(cls, name, bases, namespace)

    class NamedTuple(metaclass=_Made):
        """A tuple whose items have names, those of the annotations in the class's body."""

        __slots__ = ()
        _fields = ()
        _field_defaults = {}

        def __new__(cls, *values, **named):
            fields = cls._fields
            if named or len(values) != len(fields):
                if len(values) > len(fields):
                    raise TypeError(f"{cls.__name__}() takes {len(fields)} values, {len(values)} were given")
                defaults = cls._field_defaults
                rest = []
                for field in fields[len(values) :]:
                    if field in named:
                        rest.append(named.pop(field))
                    elif field in defaults:
                        rest.append(defaults[field])
                    else:
                        raise TypeError(f"{cls.__name__}() needs a value for {field}")
                if named:
                    raise TypeError(f"{cls.__name__}() has no field or a second value for {', '.join(named)}")
                values = (*values, *rest)
            return tuple.__new__(cls, values)

        def _replace(self, /, **named):
            """The same with other values."""
            values = [named.pop(field, value) for field, value in zip(self._fields, self, strict=True)]
            if named:
                raise ValueError(f"{type(self).__name__} has no field {', '.join(named)}")
            return tuple.__new__(type(self), values)

        def __repr__(self):
            values = (f"{field}={value!r}" for field, value in zip(self._fields, self, strict=True))
            return f"{type(self).__name__}({', '.join(values)})"

        def __getnewargs__(self):
            return tuple(self)
