"""A site of django-tenants: each tenant has tokens and an audit in a PostgreSQL schema of its own."""
