"""The training loop: state, optimizers, schedules, averages, checkpoints, logs."""
