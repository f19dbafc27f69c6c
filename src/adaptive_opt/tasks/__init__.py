"""What is trained: models, data sets, losses."""
