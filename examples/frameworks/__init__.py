"""What the examples of training frameworks share; each script shows its own framework alone."""
