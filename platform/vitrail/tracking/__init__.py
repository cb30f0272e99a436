"""Everything that imports mlflow: runs, the model registry and promotion."""
