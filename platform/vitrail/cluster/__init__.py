"""Everything that imports ray: the worker's loop, the trainer, the tuner and batch prediction."""
