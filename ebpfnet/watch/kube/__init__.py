"""The cluster from its API server: the official client connects and authenticates, the rest is read from the bytes."""
