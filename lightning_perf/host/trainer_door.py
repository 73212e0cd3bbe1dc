"""The door to every Trainer of this process, for a command that starts somebody else's script.

The one door that wraps methods of classes and functions of modules of Lightning: the Trainers do not exist yet, and the
process belongs to the command. Nothing else may stand here.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeAlias

import lightning.pytorch
import pytorch_lightning

from lightning_perf.host.doors import Undo, require
from lightning_perf.host.namespaces import is_a

_CONNECTOR = "trainer.connectors.accelerator_connector"
_LAUNCHER = "strategies.launchers.subprocess_script"

#: Called with the namespace and the callbacks that a Trainer was given; returns those that it gets.
Callbacks: TypeAlias = Callable[[ModuleType, list[Any]], list[Any]]
#: Called with the namespace and the strategy that was asked for or chosen, a name or an object; returns what to use.
StrategyChoice: TypeAlias = Callable[[ModuleType, Any], Any]
#: Called with the words that start a rank of a DDP run, the interpreter first; returns the words to use.
Relaunch: TypeAlias = Callable[[Sequence[str]], list[str]]


def at_every_trainer(callbacks: Callbacks, strategy: StrategyChoice, relaunch: Relaunch) -> Callable[[], None]:
    """Stand where Trainers of both namespaces are made and where they start further ranks; returns the undo.

    Subclasses of Trainer, and Trainers that packages make, pass through here, whenever their modules were imported.

    Raises:
        DoorClosed: this release of Lightning lacks a name that is needed.
    """
    undo = Undo()
    for namespace in (lightning.pytorch, pytorch_lightning):
        _wrap(undo, namespace.Trainer, "__init__", _adding(namespace, callbacks))
        connector = require(importlib.import_module(f"{namespace.__name__}.{_CONNECTOR}"), "_AcceleratorConnector")
        _wrap(undo, connector, "_init_strategy", _choosing(namespace, strategy))
        launcher = importlib.import_module(f"{namespace.__name__}.{_LAUNCHER}")
        _wrap(undo, launcher, "_basic_subprocess_cmd", lambda command: relaunch(command()))
        _wrap(undo, launcher, "_hydra_subprocess_cmd", _through_hydra(relaunch))
    return undo.run


def _wrap(undo: Undo, owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = require(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, name, wrapper)
    undo.push(setattr, owner, name, original)


def _adding(namespace: ModuleType, callbacks: Callbacks) -> Callable[..., None]:
    def make(init: Callable[..., None], trainer: Any, /, *args: Any, **kwargs: Any) -> None:
        given = kwargs.get("callbacks") or []
        kwargs["callbacks"] = callbacks(namespace, [given] if is_a(given, "Callback") else list(given))
        init(trainer, *args, **kwargs)

    return make


def _choosing(namespace: ModuleType, strategy: StrategyChoice) -> Callable[..., None]:
    def choose(init: Callable[..., None], connector: Any) -> None:
        connector._strategy_flag = strategy(namespace, require(connector, "_strategy_flag"))
        init(connector)

    return choose


def _through_hydra(relaunch: Relaunch) -> Callable[..., Any]:
    def start(command: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        words, folder = command(*args, **kwargs)
        return relaunch(words), folder

    return start
