"""Data files made of data files: converted, split, repeated, filtered; rows pass one at a time."""

__all__ = ["arxiv", "convert", "layout", "refcoco", "split"]
