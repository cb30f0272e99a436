"""The queue of jobs on the head: whose turn it is, what is kept of each, and what becomes of it when a head is lost."""
