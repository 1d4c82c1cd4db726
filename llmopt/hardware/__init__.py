"""Facts about this machine: what it is, what it can do at best, and what is usable on it."""
