"""Defences against clients that report impossible values: ranges of numbers, outlying sums, oversized updates."""
