"""The training loop of every task and arm."""
