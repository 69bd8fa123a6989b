"""What `tools/zoo` is made of: the models, what is measured on each, and the table."""
