"""Model to table entries; pure."""
