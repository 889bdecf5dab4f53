"""Parameters: everything that is trained or loaded. Channels last, float32 parameters."""
