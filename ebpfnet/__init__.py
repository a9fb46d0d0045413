"""ebpfnet: the network of a Kubernetes node in eBPF, driven from Python."""

__version__ = "0.1.0"
