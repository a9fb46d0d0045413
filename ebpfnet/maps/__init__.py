"""Tables in the kernel and their twins in memory."""
