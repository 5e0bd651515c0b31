"""Views for people, gateways and other services: ``include("tokenauth.api.urls")``."""
