"""The only room that knows Lightning's internals: the doors into it, each with its undo."""

from lightning_perf.host.batches import BatchMeter as BatchMeter
from lightning_perf.host.batches import batch_size_of as batch_size_of
from lightning_perf.host.batches import seed_everything as seed_everything
from lightning_perf.host.callback import PerfCallback as PerfCallback
from lightning_perf.host.callback import same_callback as same_callback
from lightning_perf.host.doors import Undo as Undo
from lightning_perf.host.dry_training import dry_passes as dry_passes
from lightning_perf.host.dry_training import dry_training as dry_training
from lightning_perf.host.evaluation_door import at_evaluation_door as at_evaluation_door
from lightning_perf.host.loader_door import at_loader_door as at_loader_door
from lightning_perf.host.loader_door import loader_generators as loader_generators
from lightning_perf.host.loader_door import loaders_exist as loaders_exist
from lightning_perf.host.module_door import Stage as Stage
from lightning_perf.host.module_door import at_module_door as at_module_door
from lightning_perf.host.namespaces import DoorClosed as DoorClosed
from lightning_perf.host.namespaces import MisconfigurationException as MisconfigurationException
from lightning_perf.host.namespaces import is_a as is_a
from lightning_perf.host.namespaces import namespace_of as namespace_of
from lightning_perf.host.optimizer_door import OptimizerSetup as OptimizerSetup
from lightning_perf.host.optimizer_door import at_optimizer_door as at_optimizer_door
from lightning_perf.host.rng import capture_rng as capture_rng
from lightning_perf.host.rng import preserved_rng as preserved_rng
from lightning_perf.host.rng import restore_rng as restore_rng
from lightning_perf.host.step_door import at_step_door as at_step_door
from lightning_perf.host.timing_door import at_timing_door as at_timing_door
from lightning_perf.host.weights_door import at_weights_door as at_weights_door
