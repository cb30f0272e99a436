"""One device's share of training: optimiser, step, state and checkpoints."""
