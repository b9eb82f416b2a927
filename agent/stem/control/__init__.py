"""Asking workers themselves, over Stem's control protocol: the one thing here that writes, and takes all of it back."""
