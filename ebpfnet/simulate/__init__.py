"""What the datapath does to a connection, answered without a cluster."""
