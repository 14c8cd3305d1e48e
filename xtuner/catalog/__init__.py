"""The recipe book: rows of models x recipes, rendered to an editable config. Torch-free.

Nothing here is a config file: `page` puts the rows of one name together (`models`, `recipes`, `exceptions`), `render`
writes its five parts (`settings`, `model_part`, `data_part`, `schedule_part`, `runtime_part`, and what `preference`,
`vision` and `trainer` write instead).
"""

__all__ = ["names", "page", "render"]
