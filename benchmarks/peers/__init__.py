"""The libraries that ours is measured beside: one module each, run in an environment of its own."""
