"""What makes the agent an operable daemon: health, metrics, Events, logs, and kube-proxy's configuration file."""
