"""What training will see, shown to people before it does: single samples, and what is wrong with a whole data set."""

__all__ = ["check", "lint", "near_duplicate", "render", "sample", "steps"]
