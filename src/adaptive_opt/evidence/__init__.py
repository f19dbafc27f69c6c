"""From histories to tables, without torch."""
