"""What keeps clients that report what cannot be true from the model: ranges of numbers, sums far outside, giants."""
