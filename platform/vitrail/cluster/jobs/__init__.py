"""Jobs by name on a cluster: what is sent, where to, and what became of it; the side of those who send."""
