"""Models, data sets and losses."""
