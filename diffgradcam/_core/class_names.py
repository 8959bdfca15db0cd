"""The names of a model's classes: given once, and shown wherever a class is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias, final

from torch import Tensor

from .naming import one_line

GivenClassNames: TypeAlias = Sequence[str] | Mapping[int, str]

_HOW = "give a list with one name for each class in order, or a mapping such as {281: 'tabby'}"


@final
class ClassNames(Mapping[int, str]):
    """The names of classes by index; of all classes, of some, or of none.

    Args:
        names: The name of each class in order, or a mapping from class indices to names; None for no names.

    Raises:
        TypeError: If it is neither, a name is not a string, or a key is not an integer.
        ValueError: If a key is negative.

    Example:
        >>> names = ClassNames(["cat", "dog"])
        >>> names[1], names.label(1), names.label(2)
        ('dog', 'dog (1)', 'class 2')
    """

    def __init__(self, names: GivenClassNames | None = None) -> None:
        if names is None:
            names = {}
        if isinstance(names, str) or not isinstance(names, Sequence | Mapping):
            raise TypeError(f"class_names is {type(names).__name__}; expected names of classes; {_HOW}")
        self._complete = isinstance(names, Sequence)
        items = list(names.items() if isinstance(names, Mapping) else enumerate(names))
        for index, name in items:
            if not isinstance(index, Integral) or isinstance(index, bool):
                raise TypeError(
                    f"class_names has the key {index!r}; expected integers, the indices of classes; for keys of a JSON "
                    "file give {int(key): name for key, name in class_names.items()}"
                )
            if index < 0:
                raise ValueError(f"class_names has the key {index}; expected class indices, 0 or more")
            if not isinstance(name, str):
                raise TypeError(f"class_names has {name!r} for class {index}; expected a string; {_HOW}")
        self._names = {int(index): name for index, name in items}
        self._largest = max(self._names, default=-1)

    @classmethod
    def from_json(cls, given: Any) -> ClassNames:
        """Names in the form that JSON has for them: a list, or an object, whose keys are strings."""
        return cls({int(index): name for index, name in given.items()} if isinstance(given, dict) else given)

    def __getitem__(self, index: int) -> str:
        return self._names[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._names)

    def __hash__(self) -> int:
        """They do not change."""
        return hash(tuple(self._names.items()))

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        """How many, and the first."""
        first = ", ".join(one_line(name) for name in list(self._names.values())[:3])
        return f"ClassNames({len(self)}: {first}{', ...' if len(self) > 3 else ''})"

    def label(self, index: int) -> str:
        """A class as people read it, in one line: its name and its index; its index alone where it has no name."""
        return f"{one_line(self[index])} ({index})" if index in self else f"class {index}"

    def check(self, logits: Tensor) -> None:
        """Refuse names that are not those of the classes of a model.

        Args:
            logits: What the model returned. Only logits ``(B, K)`` have classes that can be counted.

        Raises:
            ValueError: If a list does not have one name for each class, or a mapping names a class that does not exist.
        """
        if logits.ndim != 2:
            return
        count = logits.shape[1]
        if self._complete and len(self) != count:
            raise ValueError(f"class_names has {len(self)} names, but the model has {count} classes; {_HOW}")
        if self._largest >= count:
            raise ValueError(
                f"class_names names class {self._largest}, but the model has classes 0 to {count - 1}; {_HOW}"
            )


NO_NAMES = ClassNames()


def as_class_names(given: GivenClassNames | None) -> ClassNames:
    """Names of classes in any form that an argument takes.

    Args:
        given: As :class:`ClassNames`; those are returned as they are.

    Returns:
        The names.

    Raises:
        TypeError: As :class:`ClassNames`.
        ValueError: As :class:`ClassNames`.
    """
    if given is None:
        return NO_NAMES
    return given if isinstance(given, ClassNames) else ClassNames(given)
