"""Have against want: ordered, retried, resynced."""
