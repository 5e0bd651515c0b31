"""A project as teams have it: its own user model, transactions, a read replica and other packages."""
