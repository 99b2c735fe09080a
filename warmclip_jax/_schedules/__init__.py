"""A count in, a value out: the schedules, which know no trees, no gradients and no optimizers."""
