"""Tasks: model, data, loss and metrics behind one small protocol (`jaxlab.tasks.base.Task`)."""
