"""Measurements: what they run, how they are timed, and what is recorded of the machine they ran on."""
