"""What an unlearning run says of itself, and how somebody else checks it."""
