"""From a request to an unlearned model: which samples, which windows, the sweep, the measures."""
