"""What Linux keeps an agent from."""
