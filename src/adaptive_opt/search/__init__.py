"""Search for the best configuration of every optimizer: spaces, studies, objectives."""
