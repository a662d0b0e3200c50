"""What examples must pass before they are trained on: duplicates, benchmark text, programs run."""
