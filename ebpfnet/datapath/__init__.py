"""Programs in the kernel: flatten, compile, load, attach."""
