"""DDP presets for ``Trainer(strategy=...)``: rows of data over one strategy, in both namespaces of Lightning."""
