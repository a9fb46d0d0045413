"""What is wrong with a node, and the command that puts it right."""
