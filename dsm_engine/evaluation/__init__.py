"""Answers to benchmark problems, with and without tools, graded."""
