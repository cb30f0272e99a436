"""What a job would do and lack on its cluster, before it is sent."""
