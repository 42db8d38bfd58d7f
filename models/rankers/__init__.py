"""Online models that learn clicks or orders side by side, their calibration, and their mixture."""
