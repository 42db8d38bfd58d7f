"""What people see on their terminal: progress bars and tables."""
