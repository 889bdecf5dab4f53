"""Real pictures and videos in, batches of numpy arrays out."""
