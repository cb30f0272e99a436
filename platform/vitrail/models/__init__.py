"""The segmentor and its parts, on torch and timm alone; nothing here knows of Ray, MLflow or other processes."""
