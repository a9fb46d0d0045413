"""Policies in the tables: who is which class of peer, what groups of pods may do with it, and the order of writes."""
