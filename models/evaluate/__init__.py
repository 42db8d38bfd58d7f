"""How good predictions were: metrics as shown, cohorts of orders, confidence sequences."""
