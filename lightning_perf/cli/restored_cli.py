"""The parser of ``lightning-perf export`` and ``quantize``: any config of ``fit``, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lightning_perf.cli.trainer_cli import PerfCLI

#: Settings of a Trainer with one process, and the values that ask for no more than it.
_ONE_PROCESS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "devices": (1, ("auto", 1, "1", -1, "-1")),
    "num_nodes": (1, (1,)),
    "strategy": ("auto", ("auto",)),
}


class RestoredCLI(PerfCLI):
    """Builds module, data and Trainer of a config that ``fit`` accepts or has written, and runs nothing.

    More processes than this one would each start the command anew, and write to the same place.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """LightningCLI's hook: also the arguments of ``fit`` itself, which the configs that it writes hold."""
        super().add_arguments_to_parser(parser)
        parser.add_method_arguments(self.trainer_class, "fit", skip=set(self.subcommands()["fit"]))  # type: ignore[arg-type]

    def before_instantiate_classes(self) -> None:
        """LightningCLI's hook: one device, and a line on what the config asked for beside it."""
        trainer = self.config["trainer"]
        aside = []
        for name, (one, fine) in _ONE_PROCESS.items():
            asked = trainer.get(name)
            if name == "devices" and _is_one_index(asked):
                continue  # that very device
            if asked not in fine:
                aside.append(f"trainer.{name}={_named(asked)}")
            trainer[name] = one
        if aside:
            print(f"One process on one device does this; set aside for it: {', '.join(aside)}.")

    def weights(self, config: str | Path) -> dict[str, Any]:
        """``ckpt_path`` and ``weights_only`` as the config has them.

        Raises:
            ValueError: its ``ckpt_path`` is no file.
        """
        path = self.config.get("ckpt_path")
        if path is None:
            return {}
        if not Path(path).is_file():
            raise ValueError(
                f"ckpt_path {str(path)!r} in config {str(config)!r} is no file; give the path of one as --ckpt_path."
            )
        print(f"The weights are those of the config's own ckpt_path, {path}.")
        return {"ckpt_path": path, "weights_only": self.config.get("weights_only")}


def _is_one_index(devices: Any) -> bool:
    """Whether exactly one device is meant by its number, as in ``[1]`` or ``"1,"``."""
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()]) == 1
    return isinstance(devices, (list, tuple)) and len(devices) == 1


def _named(value: Any) -> Any:
    """A class by its path, since its arguments would fill the line."""
    return value.get("class_path") if hasattr(value, "get") else repr(value)
