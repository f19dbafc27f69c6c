"""From histories to tables: pandas and scipy, no torch."""
