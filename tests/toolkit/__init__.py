"""Another service, which uses django-oauth-toolkit as a resource server."""
