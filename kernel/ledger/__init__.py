"""What of the kernel is journaled, and how it comes back."""
