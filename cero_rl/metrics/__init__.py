"""What a run says of itself: numbers, samples, words to a person."""
