"""The example site on several machines: configuration files, and a trial of them on one machine."""
