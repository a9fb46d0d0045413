"""The cluster as a stream of model changes."""
