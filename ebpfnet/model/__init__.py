"""What the cluster says: frozen facts, no I/O."""
