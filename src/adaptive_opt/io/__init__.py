"""Where the study meets Kedro and the disk: datasets, hooks."""
