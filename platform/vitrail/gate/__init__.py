"""The promotion gate: evidence in, verdict out. No Ray, no MLflow, no torch."""
