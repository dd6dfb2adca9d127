"""The contract with NATS: which streams there are, what stands in them, and how each is read and written."""
