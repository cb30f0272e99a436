"""What a sweep varies, what came of it, and what follows from that; without Ray and MLflow, which `cluster` adds."""
