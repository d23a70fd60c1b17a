"""How the gradient at the counterfactual parameters is found: one file a mode."""
