"""What names something in here dies while it is loaded, as code that lacks a variable does."""

raise KeyError("partner-secret")
