"""What a run does when something goes wrong (docs/faults.md)."""
