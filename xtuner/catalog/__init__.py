"""The recipe book: rows of models x recipes, rendered to an editable config. Torch-free.

Nothing here is a config file: `page` puts the rows of one name together (`models`, `recipes`, `sources`, `exceptions`),
`render` writes its text.
"""

__all__ = ["names", "page", "render"]
