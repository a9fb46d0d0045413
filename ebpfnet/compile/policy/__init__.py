"""Policies to rules: who is meant, what the tiers decide together, and the entries that say so. Pure."""
