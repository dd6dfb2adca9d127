"""The HTTP adapter: publishes commands, answers from the read model. Knows nothing of workers."""
