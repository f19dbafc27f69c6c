"""Records in MLflow: training writes files and never waits; a second process sends them."""
