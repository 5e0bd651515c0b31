"""Moving in from other packages: their credentials become tokens on their first use."""
