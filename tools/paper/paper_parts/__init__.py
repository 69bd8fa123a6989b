"""What the scripts of the paper's tasks share."""
