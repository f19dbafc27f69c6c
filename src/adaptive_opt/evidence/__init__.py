"""Tables, statistics and the verdict, computed from histories; imports no torch."""
