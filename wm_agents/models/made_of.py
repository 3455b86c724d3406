"""Copies of a model's weights in another form, made again when the weights have changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

Made = TypeVar("Made", bound="MadeOf")


class MadeOf:
    """The base class of a fast version of a model's functions, which keeps weights in a form of its own.

    A step must not look at every tensor, so it notices new values written in place, by training or loading, and a
    replaced `parameters[key]`, which stands for all others: they are replaced together. Writes through `.data` are not
    noticed.

    Args:
        parameters: `_parameters` of the module with the watched parameter; a ParameterList is slower to look up.
        key: its name there.
        tensors: whose values are copied.
    """

    _made: ClassVar[WeakKeyDictionary[nn.Module, Any]]

    def __init_subclass__(cls) -> None:
        cls._made = WeakKeyDictionary()

    def __init__(self, parameters: Mapping[str, Tensor | None], key: str, tensors: Iterable[Tensor]) -> None:
        self._parameters, self._key = parameters, key
        self._tensors = [tensor for tensor in tensors if not tensor.is_inference()]
        self._made_of = self._state()

    @classmethod
    def of(cls: type[Made], model: nn.Module) -> Made:
        """That of `model`, made by `cls(model)` if there is none yet or if it does not fit any more."""
        made: Made | None = cls._made.get(model)
        if made is None or not made.fits():
            made = cls._made[model] = cls(model)  # type: ignore[call-arg, arg-type]
        return made

    def fits(self) -> bool:
        """Whether the watched tensors are still the same."""
        return self._made_of == self._state()

    def _state(self) -> list[int]:
        watched = self._parameters[self._key]
        assert watched is not None
        return [watched.data_ptr(), *[tensor._version for tensor in self._tensors]]
