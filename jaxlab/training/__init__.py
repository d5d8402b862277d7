"""The training procedure: one pure step, phases, checkpoints, shardings, records."""
