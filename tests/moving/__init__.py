"""The example site beside the packages that people move in from; runs in an environment of its own."""
