"""What a task and a run are, and what may happen to them: no I/O, no clock, no broker, no web."""
