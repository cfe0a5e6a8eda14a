"""What the gateway answers to: one router a file."""
