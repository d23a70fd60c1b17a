"""What a model knows of some rows, and how far two models' answers lie apart."""
