"""Records a training run through public hooks, and runs one with Hugging Face `Trainer`."""
