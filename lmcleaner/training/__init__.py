"""One training step as a function of parameters, optimizer state and logged step."""
