"""What a run left becomes files that others use: adapters and models as transformers, PEFT and servers open them.

Import from the module files: `to_hf` (`pth_to_hf`), `merge` (`merge`, `merge_run`), `split` (`split`).
"""

__all__ = ["companion", "fold", "merge", "split", "streamed", "to_hf", "verify"]
