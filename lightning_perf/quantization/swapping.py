"""Instances moved to a subclass of their own class, and back; deep copies and pickles come along.

The subclass has one base, the instance's class: only so is its layout the same for every class that users write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

from torch import nn

_FLOAT_CLASS, _ROLE = "_lightning_perf_float_class", "_lightning_perf_role"


def _no_members(names: tuple[str, ...]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Role:
    """What a swapped class does differently.

    Args:
        name: of the role; one row per name.
        forward: called as ``forward(own, module, *args, **kwargs)``, where ``own`` is the ``forward`` of the module's class.
        members: further members of the class, made from the names given to :func:`swap`.
    """

    name: str
    forward: Callable[..., Any]
    members: Callable[[tuple[str, ...]], dict[str, Any]] = _no_members


_ROLES: dict[str, Role] = {}


def register(role: Role) -> Role:
    """Make a role known, so that pickles find it by its name."""
    _ROLES[role.name] = role
    return role


def swap(module: nn.Module, role: Role, names: tuple[str, ...] = ()) -> None:
    """Give a module the class that plays ``role`` in front of its own class.

    Example::

        >>> loud = register(Role("loud", lambda own, module, x: own(module, x) * 10))
        >>> layer = nn.Identity()
        >>> swap(layer, loud)
        >>> layer(2), isinstance(layer, nn.Identity), role_of(layer)
        (20, True, 'loud')
        >>> swap_back(layer)
        >>> layer(2), type(layer) is nn.Identity
        (2, True)
    """
    object.__setattr__(module, "__class__", _swapped_class(role.name, names, type(module)))


def swap_back(module: nn.Module) -> None:
    """Give a swapped module its own class back; nothing for any other."""
    object.__setattr__(module, "__class__", float_class(module))


def float_class(module: nn.Module) -> type[nn.Module]:
    """The class that the user gave a module."""
    return getattr(type(module), _FLOAT_CLASS, type(module))


def role_of(module: nn.Module) -> str | None:
    """The name of the role that a module plays; None if its class is its own."""
    return getattr(type(module), _ROLE, None)


@cache
def _swapped_class(role: str, names: tuple[str, ...], cls: type[nn.Module]) -> type[nn.Module]:
    around = _ROLES[role].forward

    @wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return around(cls.forward, self, *args, **kwargs)

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        function, args, *rest = cls.__reduce_ex__(self, protocol)
        args = tuple(cls if value is type(self) else value for value in args)
        return (_rebuild, (role, names, function, args), *rest)

    members = {
        _FLOAT_CLASS: cls,
        _ROLE: role,
        "forward": forward,
        "__reduce_ex__": reduce_ex,
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        **_ROLES[role].members(names),
    }
    return type(cls)(cls.__name__, (cls,), members)


def _rebuild(role: str, names: tuple[str, ...], function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    module = function(*args)
    swap(module, _ROLES[role], names)
    return module
